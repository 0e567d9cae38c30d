"""What one rank does differently is told on every rank before a step, or is as right as in one big batch."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.waiting import patience
from support.wrapping import Branches, full, small_model, wrap
from tightgrad.collectives import run_threaded

SGD, ADAM = torch.optim.SGD, torch.optim.AdamW


def one_group(kind, **settings):
    return lambda model: kind(model.parameters(), **settings)


def reversed_order(model):
    return SGD(list(model.parameters())[::-1], lr=0.1)


def two_groups(model):
    first, *others = model.parameters()
    return SGD([{"params": [first]}, {"params": others}], lr=0.1)


def with_schedule(model):
    optimizer = SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # leaves initial_lr in the groups
    return optimizer


BOTH = one_group(SGD, lr=0.1)
RANK_1_HAS = {
    "learning rates": (BOTH, one_group(SGD, lr=0.2)),
    "optimizer settings": (one_group(ADAM, weight_decay=0.1), one_group(ADAM, weight_decay=0.2)),
    "optimizer settings, betas": (one_group(ADAM), one_group(ADAM, betas=(0.9, 0.95))),
    "optimizer settings, momentum": (BOTH, one_group(SGD, lr=0.1, momentum=0.9)),
    "optimizer settings, schedule": (BOTH, with_schedule),
    "optimizers, order": (BOTH, reversed_order),
    "learning rates, groups": (BOTH, two_groups),
    "optimizers, kind": (one_group(ADAM, lr=0.1), one_group(torch.optim.Adam, lr=0.1)),
}


def attach_differently():
    found = {}
    for case, makers in RANK_1_HAS.items():
        model = DistributedDataParallel(small_model())
        with pytest.raises(tg.RankMismatchError) as error:
            tg.attach(model, makers[dist.get_rank()](model), tg.Plan(clip=tg.clip.GlobalNorm(1.0)))
        found[case] = str(error.value)
    return found


def test_optimizers_that_differ_are_named_at_attach():
    for messages in run_ranks(2, attach_differently):
        for case, message in messages.items():
            part = case.split(",", maxsplit=1)[0]
            assert f"{part} " in message, case
            assert "differ on rank 1 (compared with rank 0)" in message, case


def rate_of_a_later_group(optimizer, _schedule):
    optimizer.param_groups[1]["lr"] *= 0.5


def another_beta(optimizer, _schedule):
    optimizer.param_groups[0]["betas"] = (0.9, 0.95)


def another_eps(optimizer, _schedule):
    optimizer.param_groups[1]["eps"] = 1e-3


def other_way(optimizer, _schedule):
    optimizer.param_groups[0]["maximize"] = True


def one_step_more(_optimizer, schedule):
    schedule.step()


CHANGES = (one_step_more, rate_of_a_later_group, another_beta, another_eps, other_way)


def part_later(wrapped, rank, collective=None, fetch="window"):
    """For each change on rank 1 alone: what the next window says, whether weights stayed, and the step after it."""
    found = []
    for change in CHANGES:
        model = wrapped()
        first, *others = model.parameters()
        optimizer = ADAM([{"params": [first]}, {"params": others}], lr=0.01)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        plan = tg.Plan(tg.Accumulate(2, fetch=fetch), clip=tg.clip.GlobalNorm(1.0))
        pipe = tg.attach(model, optimizer, plan, collective=collective)

        def epoch(model=model, pipe=pipe):
            for window in pipe.windows(torch.randn(6, 20).split((3, 3))):
                for batch in window:
                    pipe.backward(model(batch).square().mean())
                pipe.step()

        epoch()
        before, settings = [full(p) for p in model.parameters()], copy.deepcopy(optimizer.state_dict())
        if rank == 1:
            change(optimizer, schedule)
        with pytest.raises(tg.UsageError) as error:
            epoch()
        pipe.abandon()
        stayed = all(map(torch.equal, before, [full(p) for p in model.parameters()]))
        optimizer.load_state_dict(settings)
        epoch()
        found.append((str(error.value), stayed, pipe.state.step))
    return found


def check_parted(ranks):
    for found in ranks:
        for (message, stayed, steps), change in zip(found, CHANGES, strict=True):
            assert "the optimizer of rank 1 has other settings than that of rank 0" in message
            assert ("learning rate 0.01 on rank 0, 0.005 on rank 1" in message) is (change is one_step_more)
            assert stayed
            assert steps == 2


def later_under(kind):
    return part_later(lambda: wrap(small_model(), kind), dist.get_rank())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_settings_that_part_later_are_told_before_the_next_step(kind):
    check_parted(run_ranks(2, later_under, kind, timeout_seconds=patience(30)))


@pytest.mark.parametrize("fetch", ["window", "batch"])
def test_settings_that_part_later_in_a_collective_of_ones_own(fetch):
    check_parted(run_threaded(2, lambda ranks: part_later(small_model, ranks.rank, ranks, fetch)))


NOWHERE, FIRST, LAST, BOTH_TIMES = (False, False), (True, False), (False, True), (True, True)
USES = ((BOTH_TIMES, NOWHERE), (LAST, FIRST), (FIRST, FIRST), (NOWHERE, LAST), (BOTH_TIMES, BOTH_TIMES))
"""For each window and rank, in which of its two micro-batches the branch is used; by some rank in each."""


def inputs(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(2 * len(USES), 3, 20, generator=generator)


def unused_on_one_rank(sync):
    rank = dist.get_rank()
    model = DistributedDataParallel(Branches())
    plan = tg.Plan(tg.Accumulate(2, sync=sync), clip=tg.clip.GlobalNorm(1e9))
    pipe = tg.attach(model, SGD(model.parameters(), lr=0.1), plan)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for uses, window in zip(USES, pipe.windows(list(inputs(rank))), strict=True):
            for batch, uses_branch in zip(window, uses[rank], strict=True):
                pipe.backward(model(batch, uses_branch))
                dist.all_reduce(torch.ones(1))  # a loop that logs: no rank may wait in its backward until later
            pipe.step()
    told = [str(one.message) for one in caught if issubclass(one.category, tg.TightGradWarning)]
    return [full(p) for p in model.parameters()], told


def in_one_batch():
    model = Branches().double()
    optimizer = SGD(model.parameters(), lr=0.1)
    for number, uses in enumerate(USES):
        optimizer.zero_grad()
        for rank in range(2):
            for batch, uses_branch in zip(inputs(rank)[2 * number :], uses[rank], strict=False):
                (model(batch.double(), uses_branch) / 4).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("sync", ["last", "every"])
def test_a_parameter_that_one_rank_does_not_use_counts_as_zero_there(sync):
    found = run_ranks(2, unused_on_one_rank, sync, timeout_seconds=patience(30))
    for weights, told in found:
        for have, want in zip(weights, in_one_batch(), strict=True):
            torch.testing.assert_close(have.double(), want, rtol=1e-5, atol=1e-6)
        assert len(told) == 1
        assert "'branch.weight', 'branch.bias' had no gradient in a backward on rank" in told[0]
        assert "find_unused_parameters=True" in told[0]
    assert all(map(torch.equal, found[0][0], found[1][0]))
