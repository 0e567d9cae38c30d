"""Local updates of bfloat16 and float16 replicas: rounding is no motion, and the anchor keeps what is rounded off."""

import itertools

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.collectives import run_threaded

LOW = (torch.bfloat16, torch.float16)
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
FEEDBACK = tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(8, block_size=8), feedback=tg.ErrorFeedback()))
UPDATES = {
    "local sgd": tg.LocalSGD(every=2),
    "diloco": tg.DiLoCo(every=2),
    "no momentum": tg.DiLoCo(every=2, lr=0.3, momentum=0.0),
    "compressed": tg.DiLoCo(every=2, plan=FEEDBACK),
    "compressed local sgd": tg.LocalSGD(every=2, plan=FEEDBACK),
}
NUMBERS = (1.0, 0.3, -2.7, 1e-3)


class Mixed(nn.Module):
    """A low-precision parameter, a float32 one and a float64 one."""

    def __init__(self, dtype):
        super().__init__()
        self.low = nn.Parameter(torch.tensor(NUMBERS).to(dtype))
        self.wide = nn.Parameter(torch.tensor(NUMBERS))
        self.wider = nn.Parameter(torch.tensor(NUMBERS, dtype=torch.float64))


def local_step(model, rank, step):
    """Another one on each rank, as an optimizer in the parameters' own dtypes takes it."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(4, generator=generator).to(parameter.dtype))


def reference(dtype, updates, ranks, steps):
    """In float64: the way from where a replica started, and an anchor that is never rounded."""
    anchors = [parameter.detach().double() for parameter in Mixed(dtype).parameters()]
    velocity = [torch.zeros(4, dtype=torch.float64) for _ in anchors]
    for start in range(0, steps, updates.every):
        moved = [torch.zeros(4, dtype=torch.float64) for _ in anchors]
        for rank in range(ranks):
            model = Mixed(dtype)
            with torch.no_grad():
                for parameter, anchor in zip(model.parameters(), anchors, strict=True):
                    parameter.copy_(anchor)
            begun = [parameter.detach().double().clone() for parameter in model.parameters()]
            for step in range(start, start + updates.every):
                local_step(model, rank, step)
            for total, before, parameter in zip(moved, begun, model.parameters(), strict=True):
                total += (before - parameter.detach().double()) / ranks
        for anchor, held, direction in zip(anchors, velocity, moved, strict=True):
            held.mul_(updates.outer_momentum).add_(direction)
            anchor.sub_(updates.outer_lr * (direction + updates.outer_momentum * held))
    return anchors


def run(collective, dtype, updates, steps):
    model = Mixed(dtype)
    outer = tg.attach_local(model, updates, collective=collective)
    for step in range(steps):
        local_step(model, collective.rank, step)
        outer.step()
    return [p.detach() for p in model.parameters()], [p.detach() for p in outer.adapter.parameters.values()]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", ["local sgd", "diloco", "no momentum"])
def test_the_way_is_measured_from_where_replicas_started(name, dtype):
    results = run_threaded(3, lambda c: run(c, dtype, UPDATES[name], 20))
    wanted = reference(dtype, UPDATES[name], 3, 20)
    for replica, anchors in results:
        for parameter, anchor, exact, first in zip(replica, anchors, wanted, results[0][0], strict=True):
            torch.testing.assert_close(anchor.double(), exact, rtol=0.0, atol=ULP[dtype] / 4)
            assert torch.equal(parameter, anchor.to(parameter.dtype))
            assert torch.equal(parameter, first), "ranks agree to the bit"


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", list(UPDATES))
def test_a_model_at_rest_stays_at_rest(name, dtype):
    """Also from an anchor between two numbers of the replica's, which one rank's single step left."""

    def body(collective):
        model = Mixed(dtype)
        outer = tg.attach_local(model, UPDATES[name], collective=collective)
        if collective.rank == 0:
            with torch.no_grad():
                model.low[0] += ULP[dtype]
        outer.outer_step()
        outer.state.slots = {}  # an outer momentum, or a residual, would go on moving it by right
        before = [anchor.detach().clone() for anchor in outer.adapter.parameters.values()]
        norms = [outer.outer_step().grad_norm for _ in range(6)]
        after = list(outer.adapter.parameters.values())
        between = float(before[0][0]) != float(model.low.detach()[0])
        return norms, all(map(torch.equal, before, after)), between

    for norms, is_at_rest, is_between in run_threaded(3, body):
        assert norms == [0.0] * 6
        assert is_at_rest
        assert is_between


@pytest.mark.parametrize("dtype", LOW)
def test_small_steps_of_few_ranks_add_up(dtype):
    """One rank of four moves by one bit a round: the others' rounding must not take it back."""

    def body(collective):
        model = nn.Linear(1, 1, bias=False, dtype=dtype)
        with torch.no_grad():
            model.weight.fill_(1.0)
        outer = tg.attach_local(model, tg.LocalSGD(every=1), collective=collective)
        for _ in range(40):
            if collective.rank == 0:
                with torch.no_grad():
                    model.weight += ULP[dtype]
            outer.step()
        return float(model.weight.detach())

    assert run_threaded(4, body) == [1.0 + 10 * ULP[dtype]] * 4


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", ["diloco", "compressed"])
@pytest.mark.parametrize("stop", [4, 5])
def test_resumed_between_and_within_rounds_to_the_bit(name, dtype, stop, tmp_path):
    def body(collective):
        whole = run(collective, dtype, UPDATES[name], 9)
        model = Mixed(dtype)
        outer = tg.attach_local(model, UPDATES[name], collective=collective)
        for step in range(stop):
            local_step(model, collective.rank, step)
            outer.step()
        outer.save(tmp_path)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        model = Mixed(dtype)
        outer = tg.attach_local(model, UPDATES[name], collective=collective)
        model.load_state_dict(weights)
        outer.load(tmp_path)
        for step in range(stop, 9):
            local_step(model, collective.rank, step)
            outer.step()
        resumed = [p.detach() for p in model.parameters()], [p.detach() for p in outer.adapter.parameters.values()]
        return whole, resumed

    for whole, resumed in run_threaded(2, body):
        for one, other in zip(itertools.chain(*whole), itertools.chain(*resumed), strict=True):
            assert torch.equal(one, other)
