"""Before a batch is split by itself its loss is looked at: the big batch's gradient comes out, or an error."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg
from support.training import on_ranks

FEATURES = 6


class Model(nn.Module):
    """With dropout, a buffer that each forward moves, and a functional dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.register_buffer("forwards", torch.zeros(()))
        self.dropout = dropout

    def forward(self, batch):
        if self.training:
            self.forwards += 1
        return self.body(F.dropout(batch, self.dropout, self.training))


def batch(size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, FEATURES, generator=generator), torch.randint(4, (size,), generator=generator)


def mean(model, piece):
    return F.cross_entropy(model(piece[0]), piece[1])


def infonce(model, piece):
    first, second = F.normalize(model(piece[0])), F.normalize(model(piece[0] + 0.1))
    return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(first)))


def balance(model, piece):
    share = model(piece[0]).softmax(-1).mean(0)
    return mean(model, piece) + 0.1 * (share * share).sum()


def normalised(model, piece):
    scores = piece[0].sum(1)
    advantages = (scores - scores.mean()) / (scores.std() + 1e-6)
    return (advantages.square() * F.cross_entropy(model(piece[0]), piece[1], reduction="none")).mean() * (
        1 + advantages.abs().max()
    )


def summed(model, piece):
    return F.cross_entropy(model(piece[0]), piece[1], reduction="sum")


def labelled(model, piece):
    """A mean over some of the samples only."""
    return F.cross_entropy(model(piece[0]), piece[1].masked_fill(piece[1] == 0, -100), ignore_index=-100)


def with_penalty(model, piece):
    """Differentiates on its way, which raises where autograd is off."""
    inputs = piece[0].clone().requires_grad_(True)
    scores = model(inputs)
    (slope,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return F.cross_entropy(scores, piece[1]) + slope.square().sum(1).mean()


def run(loss, *, model=None, sizes=(8,), reduction="mean", limit=5, weight=None, collective=None, where=all):
    """Run out of memory above `limit` samples where gradients are recorded; the records, and the pipeline."""
    model = Model() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accumulate = tg.Accumulate(micro_batches=1, on_oom="split", loss_reduction=reduction)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=accumulate), weight=weight, collective=collective)

    def loss_of(piece):
        if torch.is_grad_enabled() and len(piece[0]) > limit:
            raise torch.OutOfMemoryError("injected: out of memory")
        return loss(model, piece)

    rank = 0 if collective is None else collective.rank
    records = [pipe.run(w, loss_of) for w in pipe.windows([batch(size, 10 * rank + size) for size in sizes])]
    return records, pipe


@pytest.mark.parametrize("loss", [infonce, balance, normalised, summed, labelled])
def test_what_is_no_weighted_mean_is_not_split(loss):
    model = Model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(tg.UnsupportedError, match=r"the mean loss of 4 samples is .*two halves.*on_oom=\"raise\""):
        run(loss, model=model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (mean, {}),
        (summed, {"reduction": "sum"}),
        (labelled, {"weight": lambda piece: int((piece[1] != 0).sum())}),
        (with_penalty, {}),
        (with_penalty, {"sizes": (3,), "limit": 1}),
        (mean, {"sizes": (9,)}),
        (mean, {"sizes": (2,), "limit": 1}),
        (mean, {"sizes": (3,), "limit": 1}),
        (lambda model, piece: {"loss": mean(model, piece)}, {}),
        (lambda model, piece: mean(model, piece).bfloat16(), {}),
        (lambda model, piece: mean(model, piece) * 0, {}),
        (lambda model, piece: mean(model, piece) - 1.4, {}),
    ],
)
def test_a_weighted_mean_is_split(loss, arguments):
    (record,), _ = run(loss, **arguments)
    assert record.retries >= 1


def autocast(model, piece):
    with torch.autocast("cpu", torch.bfloat16):
        return mean(model, piece).float()


@pytest.mark.parametrize("loss", [autocast, lambda model, piece: mean(model, piece)])
def test_low_precision_is_no_difference(loss):
    for size, retries in ((8, 1), (13, 2), (30, 3)):
        model = Model() if loss is autocast else torch.compile(Model(), backend="eager")
        (record,), _ = run(loss, model=model, sizes=(size,))
        assert record.retries == retries


def test_after_an_error_the_window_can_be_dropped_and_batches_are_whole_again():
    model = Model()
    pipe = tg.attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        tg.Plan(accumulate=tg.Accumulate(micro_batches=1, on_oom="split")),
    )
    failed = []

    def loss_of(piece):
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("injected")
        return infonce(model, piece)

    windows = pipe.windows([batch(8, 1), batch(8, 2)])
    with pytest.raises(tg.UnsupportedError):
        pipe.run(next(windows), loss_of)
    pipe.abandon()
    record = pipe.run(next(windows), loss_of)
    assert (record.retries, record.micro_batches) == (0, 1)


def test_dropout_does_not_accuse_a_weighted_mean_and_does_not_hide_another_loss():
    (record,), _ = run(mean, model=Model(dropout=0.5))
    assert record.retries == 1
    with pytest.raises(tg.UnsupportedError):
        run(infonce, model=Model(dropout=0.5))


def test_a_loss_that_is_random_in_any_mode_is_split_with_a_warning():
    def noisy(model, piece):
        return F.cross_entropy(model(piece[0] + torch.randn_like(piece[0])), piece[1])

    with pytest.warns(tg.TightGradWarning, match="could not be checked"):
        (record,), _ = run(noisy)
    assert record.retries == 1


def test_batch_norm_is_warned_about_and_split():
    model = Model()
    model.body.insert(1, nn.BatchNorm1d(8))
    with pytest.warns(tg.TightGradWarning, match="BatchNorm in training mode"):
        (record,), _ = run(mean, model=model)
    assert record.retries == 1


def test_nothing_is_left_of_the_forwards(monkeypatch):
    seen = {}

    def state(model):
        draws = torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].tolist()
        return model.forwards.clone(), [m.training for m in model.modules()], *draws

    def same(one, other):
        return all(
            torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, other, strict=True)
        )

    real = tg.pipeline.premises.loss_premise.check_additive

    def checked(batches, pieces, forward, collective):
        before = state(forward.model)
        real(batches, pieces, forward, collective)
        seen["same"] = same(before, state(forward.model))

    def drawing(model, piece):
        random.random(), np.random.rand()
        return mean(model, piece)

    monkeypatch.setattr("tightgrad.pipeline.premises.loss_premise.check_additive", checked)
    run(drawing, model=Model(dropout=0.3))
    assert seen == {"same": True}


def test_it_is_looked_at_once():
    calls = []

    def counted(model, piece):
        calls.append(torch.is_grad_enabled())
        return mean(model, piece)

    records, _ = run(counted, sizes=(8, 8, 8), limit=1)
    assert [record.retries for record in records] == [3, 0, 0]
    assert calls.count(False) == 5  # twice the piece, to see whether it is random; the piece, its halves


def test_all_ranks_hear_of_what_one_sees():
    def body(collective):
        loss = infonce if collective.rank == 1 else mean
        with pytest.raises(tg.UnsupportedError, match="out of memory, and the batch cannot be split") as error:
            run(loss, collective=collective, limit=5 if collective.rank == 0 else 100)
        return "another rank" in str(error.value)

    assert on_ranks(2, body) == [True, False]


def test_a_rank_without_batches_takes_part():
    def body(collective):
        sizes = (8, 8) if collective.rank == 0 else (8,)
        records, _ = run(mean, collective=collective, sizes=sizes, limit=5 if collective.rank == 0 else 100)
        return [record.retries for record in records]

    assert on_ranks(2, body) == [[1, 0], [1, 0]]
