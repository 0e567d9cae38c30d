"""A backward that raises may have left part of its gradient: the window has no step, whatever the loop goes on with."""

import pytest
import torch

import tightgrad as tg
from support.training import batches, linear, loss_of

PLANS = {
    "accumulate": tg.Plan(accumulate=tg.Accumulate(3)),
    "batch by batch": tg.Plan(accumulate=tg.Accumulate(3, fetch="batch")),
    "compressed": tg.Plan(
        accumulate=tg.Accumulate(3), compress=tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback())
    ),
}


class Breaks(torch.autograd.Function):
    """Raises in backward."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("broken on purpose")


def attached(plan):
    model = linear()
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_window_with_a_failed_backward_has_no_step(plan, fails_at):
    model, pipe = attached(plan)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    windows = pipe.windows(batches(6))
    failed = 0
    with pytest.raises(tg.UsageError, match=f"micro-batch {fails_at} of 3 has raised RuntimeError.*pipe.abandon"):  # noqa: PT012
        for place, batch in enumerate(next(windows)):
            loss = loss_of(model, batch)
            try:
                pipe.backward(Breaks.apply(loss) if place == fails_at else loss)
            except RuntimeError as error:  # as a UsageError is
                failed += "on purpose" in str(error)
        pipe.step()
    assert failed == 1
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    pipe.abandon()
    for batch in next(windows):
        pipe.backward(loss_of(model, batch))
    assert not pipe.step().skipped


def test_trying_again_says_why_it_cannot_be():
    model, pipe = attached(PLANS["accumulate"])
    windows = pipe.windows(batches(3))
    with pytest.raises(tg.UsageError, match="has raised RuntimeError"):  # noqa: PT012
        for batch in next(windows):
            with pytest.raises(RuntimeError, match="on purpose"):
                pipe.backward(Breaks.apply(loss_of(model, batch)))
            pipe.backward(loss_of(model, batch))


@pytest.mark.parametrize("weight", [torch.ones(3), "four", None, [4]], ids=["vector", "word", "nothing", "list"])
def test_a_weight_that_is_no_number_is_named(weight):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, PLANS["accumulate"], weight=lambda batch: weight)
    with pytest.raises(tg.ConfigError, match="must give one number"):
        next(iter(pipe.windows(batches(3))))
