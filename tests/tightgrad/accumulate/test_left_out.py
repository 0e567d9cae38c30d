"""Micro-batches that a loop leaves out: exact with the weight 0, and an error that says so without a backward."""

import pytest
import torch

import tightgrad as tg
from support.training import linear, loss_of

GOOD = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
BAD = {"nan": torch.full((4, 3), torch.nan), "inf": torch.full((4, 3), torch.inf), "large": torch.full((4, 3), 1e30)}


def is_good(batch):
    return bool((batch.abs() < 1e20).all())


def window_of(bad, weight, **settings):
    model, kept = linear(), []

    class Keeping(torch.optim.SGD):
        def step(self, closure=None):
            kept.extend(parameter.grad.clone() for parameter in model.parameters())

    plan = tg.Plan(accumulate=tg.Accumulate(4, **settings))
    pipe = tg.attach(model, Keeping(model.parameters(), lr=0.1), plan, weight=weight)
    return model, pipe, kept, pipe.windows([GOOD[0], bad, *GOOD[1:]])


@pytest.mark.parametrize("fetch", ["window", "batch"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_the_weight_0_leaves_one_out_exactly(bad, fetch):
    model, pipe, kept, windows = window_of(bad, lambda batch: len(batch) if is_good(batch) else 0, fetch=fetch)
    for window in windows:
        for batch in window:
            pipe.backward(loss_of(model, batch))
        record = pipe.step()
    model = linear()
    loss_of(model, torch.cat(GOOD)).backward()
    for found, parameter in zip(kept, model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)
    assert record.weight == 12
    assert not record.skipped


def skipping(pipe, model, window):
    for batch in window:
        if is_good(batch):
            pipe.backward(loss_of(model, batch))
    pipe.step()


def skipping_the_last(pipe, model, window):
    for place, batch in enumerate(window):
        if place < 3:
            pipe.backward(loss_of(model, batch.nan_to_num()))
    pipe.step()


def breaking(pipe, model, window):
    for batch in window:
        pipe.backward(loss_of(model, batch))
        break
    pipe.step()


@pytest.mark.parametrize("loop", [skipping, skipping_the_last, breaking])
def test_without_its_backward_the_error_says_what_to_do(loop):
    model, pipe, _, windows = window_of(BAD["nan"], len)
    with pytest.raises(tg.UsageError, match="give it the weight 0") as caught:
        loop(pipe, model, next(windows))
    assert "A loss of 0" in str(caught.value)
    assert ("schedule" in str(caught.value)) == (loop is not skipping)
    pipe.abandon()
