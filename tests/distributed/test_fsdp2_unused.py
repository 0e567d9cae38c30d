"""FSDP2 with several micro-batches: a parameter has a gradient if any rank used it in any of them, and only then."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import Branches, full
from tightgrad.adapters.parts.fsdp2_torch import param_groups

NOWHERE, FIRST, LAST, BOTH = (False, False), (True, False), (False, True), (True, True)
USES = (
    (BOTH, BOTH),
    (NOWHERE, NOWHERE),
    (FIRST, NOWHERE),
    (NOWHERE, LAST),
    (LAST, FIRST),
    (NOWHERE, NOWHERE),
    (BOTH, LAST),
)
"""For each window and rank, in which of its two micro-batches the branch is used."""


def trained(sync):
    """Weights after each window."""
    rank = dist.get_rank()
    module = Branches()
    if sync == "ddp":
        model = DistributedDataParallel(module, find_unused_parameters=True)
    else:
        model = fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    # Weight decay moves a parameter whose gradient is zero, but none that has no gradient.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    plan = tg.Plan(accumulate=tg.Accumulate(2, sync="last" if sync == "ddp" else sync), clip=tg.clip.GlobalNorm(1.0))
    pipe = tg.attach(model, optimizer, plan)
    generator = torch.Generator().manual_seed(rank)
    batches = [torch.randn(4, 20, generator=generator) for _ in range(2 * len(USES))]
    weights = []
    for step, window in enumerate(pipe.windows(batches)):
        for position, batch in enumerate(window):
            pipe.backward(model(batch, USES[step][rank][position]))
        pipe.step()
        weights.append([full(parameter) for parameter in model.parameters()])
    return weights


def asked(on_nonfinite):
    """What a rank does in a window whose branch rank 0 uses, and in one whose branch no rank uses, in order."""
    rank = dist.get_rank()
    model = fully_shard(Branches(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = tg.Plan(accumulate=tg.Accumulate(1, sync="last"), guard=tg.Guard(on_nonfinite))
    pipe = tg.attach(model, optimizer, plan)
    events = []
    all_reduce_ = pipe.adapter.collective.all_reduce_

    def asking(tensor, op="sum"):
        if tensor.dtype is torch.uint8:
            events.append("asks")
        return all_reduce_(tensor, op)

    pipe.adapter.collective.all_reduce_ = asking
    optimizer.register_step_pre_hook(lambda *_: events.append("steps"))
    for step, window in enumerate(pipe.windows([torch.ones(4, 20)] * 2)):
        for batch in window:
            pipe.backward(model(batch, rank == step == 0))
        pipe.step()
    return events


@pytest.mark.parametrize("on_nonfinite", ["raise", "propagate"])
def test_each_step_asks_once_before_the_optimizer(on_nonfinite):
    assert run_ranks(2, asked, on_nonfinite) == [["asks", "steps"] * 2] * 2


def attached_again():
    """Whether an earlier adapter still looks, and what a step says if torch never calls what looks."""
    model = fully_shard(Branches(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    earlier = tg.attach(model, optimizer, tg.Plan())
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(1)))
    messages = []
    for loses_sight in (False, True):
        if loses_sight:
            for module in pipe.adapter._modules:
                for group in param_groups(module):
                    del group.post_backward
        for window in pipe.windows([torch.ones(4, 20)]):
            for batch in window:
                pipe.backward(model(batch, True))
            try:
                pipe.step()
            except tg.UnsupportedError as error:
                messages.append(str(error))
    return earlier.adapter._has_noted, messages


def test_who_looks_and_what_is_said_where_nobody_can():
    for earlier_looks, messages in run_ranks(2, attached_again):
        assert not earlier_looks
        (message,) = messages
        assert "post_backward" in message
        assert "torch 2.9 to 2.14" in message


def unused_in_bfloat16():
    """Whether a branch that no rank uses stays as it is: its gradients are absorbed after each backward."""
    model = fully_shard(Branches().bfloat16(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(2, sync="every")))
    before = [full(parameter) for parameter in model.parameters()]
    for window in pipe.windows([torch.ones(4, 20, dtype=torch.bfloat16)] * 4):
        for batch in window:
            pipe.backward(model(batch, False))
        pipe.step()
    return [torch.equal(full(parameter), old) for parameter, old in zip(model.parameters(), before, strict=True)]


def test_an_unused_branch_in_bfloat16_is_left_alone():
    assert run_ranks(2, unused_in_bfloat16) == [[False, False, True, True]] * 2


def resumed_in_bfloat16(stops_after):
    """Weights after a window whose branch is used in its first micro-batch only, with a checkpoint after one."""

    def made():
        model = fully_shard(Branches().bfloat16(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(2, sync="every")))

    batches = [torch.ones(4, 20, dtype=torch.bfloat16)] * 2
    model, pipe = made()
    for window in pipe.windows(batches):
        for position, batch in enumerate(window):
            pipe.backward(model(batch, position == 0))
            if position == stops_after:
                saved = pipe.state_dict()
                break
        if stops_after is None:
            pipe.step()
        break
    if stops_after is not None:
        model, pipe = made()
        pipe.load_state_dict(saved)
        for window in pipe.windows(batches):
            for batch in window:
                pipe.backward(model(batch, False))
            pipe.step()
    return [full(parameter) for parameter in model.parameters()]


@pytest.mark.parametrize("stops_after", [0, 1])
def test_what_was_used_before_a_checkpoint_counts_after_it(stops_after):
    throughout, resumed = run_ranks(2, resumed_in_bfloat16, None), run_ranks(2, resumed_in_bfloat16, stops_after)
    for one, other in zip(throughout, resumed, strict=True):
        assert all(map(torch.equal, one, other))


def all_ways():
    return {sync: trained(sync) for sync in ("ddp", "last", "every")}


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(2, all_ways)


@pytest.mark.parametrize("sync", ["last", "every"])
def test_the_same_weights_as_under_ddp(ranks, sync):
    for ways in ranks:
        for step, (ddp, fsdp2) in enumerate(zip(ways["ddp"], ways[sync], strict=True)):
            for one, other in zip(ddp, fsdp2, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7, msg=f"window {step}")


def test_a_window_without_the_branch_leaves_it_alone(ranks):
    for ways in ranks:
        for weights in ways.values():
            unused = [step for step, uses in enumerate(USES) if uses == (NOWHERE, NOWHERE)]
            for step in unused:
                *_, weight, bias = weights[step]
                *_, weight_before, bias_before = weights[step - 1]
                assert torch.equal(weight, weight_before)
                assert torch.equal(bias, bias_before)
