"""A window as the closure of LBFGS or SAM on two ranks: the step of the big batch of both, with the same bits."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.closing import by_hand, halves, lbfgs, sam, strong_wolfe, twice
from support.in_turn import in_turn
from support.ranks import run_ranks
from support.wrapping import small_model, wrap

SIZES = ((4, 2, 5, 4, 3, 3, 1, 4), (1, 4, 4, 2, 5, 3))  # the second rank ends first


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def data(rank):
    generator = torch.Generator().manual_seed(rank)
    make = lambda n, m: torch.randn(n, m, generator=generator).double()  # noqa: E731
    return [(make(n, 6), make(n, 1)) for n in SIZES[rank]]


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(kind, micro_batches, settings, poisoned=0):
    model = DistributedDataParallel(network())
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches), **settings)
    pipe, calls = tg.attach(model, kind(model.parameters()), plan), []

    def loss_of(batch):
        calls.append(1)
        return squares(model, batch) * (float("nan") if len(calls) == poisoned and dist.get_rank() == 1 else 1.0)

    records = [pipe.run(window, loss_of) for window in pipe.windows(data(dist.get_rank()))]
    return flat(model), [(record.step, record.skip_reason, record.weight) for record in records]


def expected(kind, micro_batches, keep=lambda window: True):
    rows = [data(rank) for rank in range(2)]
    starts = range(0, len(rows[0]), micro_batches)
    windows = [[batch for row in rows for batch in row[at : at + micro_batches]] for at in starts]
    model = network()
    whole = [tuple(torch.cat(parts) for parts in zip(*window, strict=True)) for window in filter(keep, windows)]
    by_hand(model, kind(model.parameters()), squares, whole)
    return flat(model)


@pytest.mark.parametrize(("kind", "micro_batches"), in_turn([lbfgs, strong_wolfe, sam, halves, twice], [4, 1]))
def test_the_step_is_that_of_the_big_batch_of_both_ranks(kind, micro_batches):
    found = run_ranks(2, train, kind, micro_batches, {})
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0], expected(kind, micro_batches), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("kind", "overlap"), in_turn([strong_wolfe, sam], ["none", "backward"]))
def test_the_pipeline_sums(kind, overlap):
    settings = {"compress": tg.Compress(tg.codecs.Cast("float32"), overlap=overlap)}
    found = run_ranks(2, train, kind, 4, settings)
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][0], expected(kind, 4), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [strong_wolfe, sam])
def test_a_gradient_that_is_not_finite_on_one_rank_in_a_later_pass_leaves_the_step_out_on_both(kind):
    found = run_ranks(2, train, kind, 4, {"guard": tg.Guard("skip")}, 6)
    assert torch.equal(found[0][0], found[1][0])
    assert [reason for _, reason, _ in found[1][1]] == ["nonfinite", None]
    second = expected(kind, 4, lambda window: not torch.equal(window[0][0], data(0)[0][0]))
    torch.testing.assert_close(found[0][0], second, rtol=1e-6, atol=1e-8)


def attach_sharded(kind):
    model = wrap(small_model(), "fsdp2")
    with pytest.raises(tg.UnsupportedError, match="under fully_shard its step would see only a part"):
        tg.attach(model, kind(model.parameters()), tg.Plan(accumulate=tg.Accumulate(2)))
    return True


@pytest.mark.parametrize("kind", [lbfgs, sam])
def test_sharded_parameters_are_refused(kind):
    assert run_ranks(2, attach_sharded, kind) == [True, True]
