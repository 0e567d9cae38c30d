"""DiLoCo across islands of ranks that sum gradients at every step: the way that the errors name, and the errors."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from tightgrad.collectives import TorchCollective

ISLANDS, PER_ISLAND, STEPS, EVERY, LR = 2, 2, 4, 2, 0.1
UPDATES = tg.DiLoCo(every=EVERY, lr=0.7, momentum=0.9)


def net(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def data(rank, step):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * rank + step))


def reference():
    """One process, float64."""
    anchor = net(torch.float64)
    islands = [net(torch.float64) for _ in range(ISLANDS)]
    velocity = [torch.zeros_like(parameter) for parameter in anchor.parameters()]
    for step in range(STEPS):
        for index, model in enumerate(islands):
            model.zero_grad()
            ranks = range(index * PER_ISLAND, (index + 1) * PER_ISLAND)
            (sum(model(data(rank, step).double()).square().mean() for rank in ranks) / PER_ISLAND).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(LR * parameter.grad)
        if (step + 1) % EVERY == 0:
            with torch.no_grad():
                for held, start, *ends in zip(velocity, *(m.parameters() for m in (anchor, *islands)), strict=True):
                    moved = sum(start - end for end in ends) / ISLANDS
                    held.mul_(UPDATES.momentum).add_(moved)
                    start.sub_(UPDATES.lr * (moved + UPDATES.momentum * held))
                    for end in ends:
                        end.copy_(start)
    return [parameter.detach() for parameter in anchor.parameters()]


def groups():
    """This rank's island, and the ranks of its place in every island."""
    island, place = divmod(dist.get_rank(), PER_ISLAND)
    rows = [[PER_ISLAND * i + p for p in range(PER_ISLAND)] for i in range(ISLANDS)]
    islands = [dist.new_group(row) for row in rows]
    across = [dist.new_group([row[p] for row in rows]) for p in range(PER_ISLAND)]
    return islands[island], across[place]


def islands_of_ddp(updates):
    inside, across = groups()
    model = DistributedDataParallel(net(), process_group=inside)
    outer = tg.attach_local(model.module, updates, collective=TorchCollective(across))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(data(dist.get_rank(), step)).square().mean().backward()
        optimizer.step()
        outer.step()
    return [parameter.detach() for parameter in model.parameters()]


def both():
    compressed = tg.DiLoCo(
        every=EVERY, plan=tg.Plan(compress=tg.Compress(tg.codecs.QSGD(levels=7), feedback=tg.ErrorFeedback()))
    )
    return islands_of_ddp(UPDATES), islands_of_ddp(compressed)


def test_the_way_out_is_right_and_ranks_of_an_island_stay_alike():
    ranks = run_ranks(ISLANDS * PER_ISLAND, both)
    for plain, compressed in ranks:
        for found, first, wanted in zip(plain, ranks[0][0], reference(), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
            assert torch.equal(found, first)
        assert all(map(torch.equal, compressed, ranks[0][1]))


def wrappers():
    mesh = init_device_mesh("cpu", (1,))
    return {
        "ddp": DistributedDataParallel(net()),
        "fsdp2": fully_shard(net(), mesh=mesh),
        "fsdp2 inside": nn.Sequential(fully_shard(net(), mesh=mesh)),
        "ddp inside": nn.Sequential(DistributedDataParallel(net())),
        "data parallel inside": nn.Sequential(nn.DataParallel(net())),
    }


def refusals():
    said = {}
    for name, model in wrappers().items():
        with pytest.raises(tg.UnsupportedError) as found:
            tg.attach_local(model, UPDATES)
        said[name] = str(found.value)
    return said


def test_wrappers_are_refused_with_the_way_out():
    (said,) = run_ranks(1, refusals)
    for name in ("ddp", "fsdp2", "fsdp2 inside"):
        assert "DistributedDataParallel(model, process_group=island)" in said[name], name
        assert "attach_local(model.module, ..." in said[name], name
    for name, text in said.items():
        assert not any(word in text for word in ("on_oom", "overlap", "Wrap the whole")), name
    assert "'0' is sharded (fully_shard)" in said["fsdp2 inside"]
    assert "'0' inside it is in DistributedDataParallel" in said["ddp inside"]
    assert len(set(itertools.chain(said.values()))) == len(said)
