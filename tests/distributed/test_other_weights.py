"""Ranks that hold other weights are told so before the first step, and where only some of them wrote to weights."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.in_turn import in_turn
from support.ranks import run_ranks
from support.waiting import patience
from support.wrapping import full, local, small_model, wrap

CLIP = tg.clip.GlobalNorm(1.0)
COMPRESS = tg.Compress(tg.codecs.Cast("float32"))


def train(model, pipe, windows=1):
    for window in pipe.windows(torch.randn(4 * windows, 20).split(2)):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        pipe.step()


def told(model, pipe, windows=1):
    """What a window says, and whether weights stayed as they were."""
    before = [local(parameter) for parameter in model.parameters()]
    with pytest.raises(tg.RankMismatchError) as error:
        train(model, pipe, windows)
    return str(error.value), all(map(torch.equal, before, map(local, model.parameters())))


def change_last_bias(model):
    with torch.no_grad():
        model[-1].bias[1] += 1e-6


def take_a_step(model, optimizer):
    """What a checkpoint would leave in the optimizer, at weights that are the same."""
    other = copy.deepcopy(model)
    ahead = torch.optim.Adam(other.parameters())
    other(torch.ones(1, 20)).sum().backward()
    ahead.step()
    optimizer.load_state_dict(ahead.state_dict())


def begin_apart(compress):
    found = {}
    for case in ("before attach", "after attach", "optimizer"):
        net = small_model()
        model = DistributedDataParallel(net)
        optimizer = torch.optim.Adam(model.parameters())
        if dist.get_rank() == 0 and case == "before attach":
            change_last_bias(net)
        pipe = tg.attach(model, optimizer, tg.Plan(tg.Accumulate(2), clip=CLIP, compress=compress))
        if dist.get_rank() == 0 and case == "after attach":
            change_last_bias(net)
        if dist.get_rank() == 0 and case == "optimizer":
            take_a_step(net, optimizer)
        found[case] = told(model, pipe)
    return found


@pytest.mark.parametrize("compress", [None, COMPRESS], ids=["ddp", "compress"])
def test_ranks_that_begin_apart_are_told_so_on_every_rank(compress):
    for found in run_ranks(2, begin_apart, compress, timeout_seconds=patience(30)):
        for case, (message, stayed) in found.items():
            assert "before step 0 the ranks do not hold the same numbers" in message
            assert stayed
            what = "optimizer's state of '0.weight'" if case == "optimizer" else "weight of '5.bias'"
            assert f"the {what} differs on rank 1" in message
            assert ("'3.weight'" in message) is (case == "optimizer")


def replicas_apart():
    model = wrap(small_model(), "hsdp")
    if dist.get_rank() >= 2:
        with torch.no_grad():
            model[-1].bias.to_local().add_(1.0)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(tg.Accumulate(2), clip=CLIP))
    return told(model, pipe)


def test_replicas_of_shards_are_compared_with_one_another():
    for message, stayed in run_ranks(4, replicas_apart, timeout_seconds=patience(30)):
        assert "the weight of '5.bias' differs on rank 2, 3." in message
        assert stayed


def plain_copies():
    model = small_model()
    if dist.get_rank() == 2:
        change_last_bias(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = tg.Plan(tg.Accumulate(2))
    return told(model, tg.attach(model, optimizer, plan, collective=tg.collectives.TorchCollective()))


def test_copies_of_a_plain_module():
    for message, stayed in run_ranks(3, plain_copies, timeout_seconds=patience(30)):
        assert "the weight of '5.bias' differs on rank 2." in message
        assert stayed


class Partly(torch.optim.SGD):
    """Keeps something else on each rank, as ZeroRedundancyOptimizer does, which is none of `torch.optim` either."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["own"] = torch.tensor(dist.get_rank())
        return super().step(closure)


def parts_of_an_optimizer():
    model = DistributedDataParallel(small_model())
    optimizer = Partly(model.parameters(), lr=0.1)
    for _ in range(2):  # the second attach finds what the first has kept
        train(model, tg.attach(model, optimizer, tg.Plan(tg.Accumulate(2), clip=CLIP)))
    return [full(parameter) for parameter in model.parameters()]


def test_an_optimizer_that_keeps_another_part_on_each_rank():
    one, other = run_ranks(2, parts_of_an_optimizer, timeout_seconds=patience(30))
    assert all(map(torch.equal, one, other))


def written_later(compress, fetch):
    """Rank 0 alone writes between two windows: averaged weights, which it puts back; and another checkpoint, of the
    weights or of the optimizer.
    """
    found = []
    for case in ("weights", "optimizer", "no state"):
        net = small_model()
        model = DistributedDataParallel(net)
        optimizer = torch.optim.Adam(model.parameters())
        plan = tg.Plan(tg.Accumulate(2, fetch=fetch), clip=CLIP, compress=compress)
        pipe, first = tg.attach(model, optimizer, plan), copy.deepcopy(net.state_dict())
        train(model, pipe)
        if dist.get_rank() == 0:
            own = copy.deepcopy(net.state_dict())
            net.load_state_dict(first)
            net.load_state_dict(own)
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(model, pipe)
        steps = pipe.state.step
        if dist.get_rank() == 0 and case == "weights":
            net.load_state_dict(first)
        elif dist.get_rank() == 0 and case == "optimizer":
            take_a_step(net, optimizer)
        elif dist.get_rank() == 0:
            optimizer.state.clear()
        found.append((case, steps, *told(model, pipe)))
    return found


@pytest.mark.parametrize(("compress", "fetch"), in_turn([None, COMPRESS], ["window", "batch"]))
def test_what_one_rank_alone_has_written_is_compared_before_the_next_step(compress, fetch):
    for found in run_ranks(2, written_later, compress, fetch, timeout_seconds=patience(30)):
        for case, steps, message, stayed in found:
            assert steps == 2
            assert "before step 2 the ranks do not hold the same numbers" in message
            what = "weight" if case == "weights" else "optimizer's state"
            assert f"the {what} of '0.weight' differs on rank 1" in message
            assert stayed
