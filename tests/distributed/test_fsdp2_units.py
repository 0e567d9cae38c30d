"""Ranks that call different modules under `fully_shard` are told so before torch mixes parts of their weights."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import tightgrad as tg
from support.ranks import run_ranks
from tightgrad.adapters.parts import same_units
from tightgrad.adapters.parts.fsdp2_torch import fsdp_modules

PLAN = tg.Plan(tg.Accumulate(2), clip=tg.clip.GlobalNorm(1.0))
CASES = {  # which experts each rank calls, and what is said of ranks 0 and 1
    "others": (([0], [1]), ("'experts.0'", "'experts.1'")),
    "one rank only": (([1], []), ("'experts.1'", "'head'")),
    "in another order": (([0, 1], [1, 0]), ("'experts.0'", "'experts.1'")),
    "once more": (([0, 0], [0]), ("'experts.0'", "'head'")),
    "last": (([], []), ("'head'", "begins its backward")),
}


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.again = lambda module, inputs: module(inputs)

    def forward(self, inputs, experts):
        hidden = self.trunk(inputs)
        for number in experts:
            hidden = hidden + self.again(self.experts[number], hidden)
        return self.head(hidden)


def made(plan=PLAN):
    torch.manual_seed(0)
    model = Routed()
    for module in (*model.experts, model.head):
        fully_shard(module)
    fully_shard(model)
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)


def hooks(model):
    hooks = [hook for module in fsdp_modules(model) for hook in module._forward_pre_hooks.values()]
    return [hook for hook in hooks if getattr(getattr(hook, "func", hook), "__module__", "").startswith("tightgrad")]


def evaluates_alone():
    """Rank 0 alone runs an evaluation between two micro-batches."""
    model, pipe = made()
    batches = next(iter(pipe.windows([torch.ones(2, 6)] * 4)))
    try:
        for batch in batches:
            pipe.backward(model(batch, [0]).square().mean())
            if dist.get_rank() == 0:
                with torch.no_grad():
                    model(batch, [0])
    except tg.UsageError as error:
        return str(error)
    return ""


def test_an_evaluation_on_one_rank_between_two_micro_batches():
    for text in run_ranks(2, evaluates_alone):
        assert "rank 0 calls 'the model', rank 1 begins its backward" in text
        assert "in an evaluation too" in text


def differ(from_window):
    said = {}
    for case, (uses, _) in CASES.items():
        model, pipe = made()
        window = 0
        try:
            for window, batches in enumerate(pipe.windows([torch.ones(2, 6)] * 6)):
                experts = uses[dist.get_rank()] if window == from_window else [0, 1]
                for batch in batches:
                    out = model(batch, experts)
                    if case == "last" and window == from_window and dist.get_rank() == 0:
                        out = out + model.head(torch.ones(2, 8))
                    pipe.backward(out.square().mean())
                pipe.step()
        except tg.UsageError as error:
            said[case] = (window, str(error))
        assert hooks(model) == []
        pipe.close()
    return said


@pytest.mark.parametrize("from_window", [0, 1])
def test_a_difference_is_an_error_on_every_rank_that_names_the_modules(from_window):
    for said in run_ranks(2, differ, from_window):
        for case, (_, (first, second)) in CASES.items():
            window, text = said[case]
            assert window == from_window, case
            assert f"rank 0 {'' if first.startswith('begins') else 'calls '}{first}" in text, case
            assert f"rank 1 {'' if second.startswith('begins') else 'calls '}{second}" in text, case
            assert "same order in each forward" in text


def alike():
    """Recomputed forwards, forwards without gradients, other calls in each micro-batch, and none of a module."""
    model, pipe = made(tg.Plan(tg.Accumulate(2, allow_skip=True), clip=tg.clip.GlobalNorm(1.0)))
    assert len(hooks(model)) == 4
    model.again = lambda module, inputs: checkpoint(module, inputs, use_reentrant=False)
    calls = iter([[0, 1], [1], [], [1, 0], [0], [1]])
    for batches in pipe.windows([torch.ones(2, 6)] * 6):
        for batch in batches:
            experts = next(calls)
            with torch.no_grad():
                model(batch, experts)
            pipe.backward(model(batch, experts).square().mean())
        pipe.step()
    model(torch.ones(2, 6), [0])
    return len(hooks(model)), pipe.state.step


def test_ranks_that_do_the_same_are_left_alone_and_later_not_looked_at():
    assert run_ranks(2, alike) == [(0, 3), (0, 3)]


def released():
    model, pipe = made()
    pipe.close()

    return len(hooks(model))


def test_nothing_is_left_behind_by_close():
    assert run_ranks(2, released) == [0, 0]


def nodes(uses):
    """Weights are gathered within a node, and what each node has summed is sent to the other."""
    torch.manual_seed(0)
    model = Routed()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "shard"))["shard"]
    for module in (*model.experts, model.head):
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer, collective = torch.optim.SGD(model.parameters(), lr=0.1), tg.collectives.TorchCollective()
    pipe = tg.attach(model, optimizer, tg.Plan(tg.Accumulate(2), tg.Compress()), collective=collective)
    try:
        for batches in pipe.windows([torch.ones(2, 6)] * 4):
            for batch in batches:
                pipe.backward(model(batch, uses[dist.get_rank() // 2]).square().mean())
            pipe.step()
    except tg.UsageError as error:
        return pipe.state.step, str(error)
    return pipe.state.step, ""


def test_nodes_that_call_other_modules_are_told_before_the_first_step():
    for steps, text in run_ranks(4, nodes, ([0, 1], [1, 0])):
        assert steps == 0
        assert "rank 1 calls 'experts.0', rank 2 calls 'experts.1'" in text


class Gathers:
    """Stands for the ranks; counts what is gathered."""

    rank, world_size, control_device, is_broken = 0, 2, torch.device("cpu"), False

    def __init__(self, group):
        self.gathered = []

    def all_gather(self, mine):
        self.gathered.append(int(mine))
        if self.is_broken:
            raise tg.CommunicationError("the other rank is gone")
        return mine.repeat(2)


@pytest.mark.parametrize(
    ("before", "tells"),
    [
        ((), True),
        (("begin",), True),
        (("begin", "before_backward"), False),
        (("begin", "before_backward", "after_backward"), True),
        (("last", "before_backward"), False),
        (("last", "before_backward", "after_backward"), False),
    ],
)
@pytest.mark.parametrize("is_broken", [False, True])
def test_others_are_told_only_while_they_may_wait_before_a_module(monkeypatch, before, tells, is_broken):
    monkeypatch.setattr(same_units, "TorchCollective", Gathers)
    look = same_units.SameUnits({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}, group=object())
    look.begin_window()
    for name in before:
        if name in ("begin", "last"):
            look.begin(is_last=name == "last")
        else:
            getattr(look, name)()
    look._collective.is_broken = is_broken
    look.leave()
    assert (look._collective.gathered[-1:] == [same_units._LEFT]) is tells
    look.close()


def differ_later(uses):
    model, pipe = made()
    told, window = "", 0
    try:
        for window, batches in enumerate(pipe.windows([torch.ones(2, 6)] * 12)):
            experts = uses[dist.get_rank()] if window == 3 else [0, 1]
            for batch in batches:
                pipe.backward(model(batch, experts).square().mean())
            pipe.step()
    except tg.UsageError as error:
        told = str(error)
        pipe.abandon()
    return window, told


@pytest.mark.parametrize("uses", [([0], [1]), ([0, 1], [1, 0])])
def test_later_a_difference_that_torch_does_not_see_is_told_in_the_next_window(uses):
    for window, told in run_ranks(2, differ_later, uses):
        assert window == 3  # the fourth, of which there was a step; there is no fifth
        assert "rank 1 called other fully_shard modules than rank 0 in the previous window" in told
        assert "Load the last checkpoint" in told
