"""Two ranks that share one device, over gloo, which moves a GPU's tensors through the host."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from gpu.test_pipeline import COMPRESS, loss_of, network
from support.device import DEVICE, skip_without_device
from support.ranks import run_ranks
from support.waiting import patience
from support.wrapping import full, ragged_batches
from tightgrad.collectives import TorchCollective

skip_without_device()
pytestmark = pytest.mark.timeout(patience(60))
TIMEOUT_SECONDS = patience(20)
PLANS = {"dense": tg.Compress(), **COMPRESS}


def loader():
    return [(inputs.to(DEVICE), labels.to(DEVICE)) for inputs, labels in ragged_batches(dist.get_rank())]


def collectives():
    collective = TorchCollective()
    rank = dist.get_rank()
    for dtype in (torch.uint8, torch.int64, torch.float32):
        mine = torch.full((5,), rank + 1, device=DEVICE, dtype=dtype)
        assert collective.all_gather(mine).tolist() == [[1] * 5, [2] * 5]
        assert collective.all_reduce_(mine.clone()).tolist() == [3] * 5
        assert collective.broadcast_(mine.clone(), 1).tolist() == [2] * 5
        received = collective.all_to_all([mine[:2], mine[:3]], [2, 2] if rank == 0 else [3, 3])
        assert [chunk.tolist() for chunk in received] == [[1] * (2 + rank), [2] * (2 + rank)]
    return True


def test_collectives():
    assert run_ranks(2, collectives, timeout_seconds=TIMEOUT_SECONDS) == [True, True]


def both_ways(name):
    results = []
    for overlap in ("none", "backward"):
        model = DistributedDataParallel(network().eval(), bucket_cap_mb=0.001)
        plan = tg.Plan(
            accumulate=tg.Accumulate(3),
            compress=dataclasses.replace(PLANS[name], overlap=overlap),
            clip=tg.clip.GlobalNorm(0.3),
        )
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), plan)
        for window in pipe.windows(loader()):
            for batch in window:
                pipe.backward(loss_of(model, batch))
            pipe.step()
        results.append([parameter.detach().cpu() for parameter in model.parameters()])
    return results


@pytest.mark.parametrize("name", PLANS)
def test_overlapped_is_the_explicit_mode_and_ranks_are_equal(name):
    ranks = run_ranks(2, both_ways, name, timeout_seconds=TIMEOUT_SECONDS)
    explicit, overlapped = ranks[0]
    for one, other in zip(explicit, overlapped, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(ranks[0], ranks[1], strict=True):
        assert all(map(torch.equal, one, other))


def sharded(compressed):
    model: nn.Sequential = network().eval()
    mesh = init_device_mesh(DEVICE.type, (2,))
    fully_shard(model[3], mesh=mesh)
    fully_shard(model, mesh=mesh)
    plan = tg.Plan(accumulate=tg.Accumulate(2), compress=COMPRESS["two shots"] if compressed else None)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    for window in pipe.windows(loader()):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        pipe.step()
    return [full(parameter).cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("compressed", [False, True])
def test_fsdp2(compressed):
    if not compressed and DEVICE.type == "cuda":
        pytest.skip("torch's own reduce-scatter of CUDA tensors over gloo ends the process (2.11, SIGSEGV)")
    one, other = run_ranks(2, sharded, compressed, timeout_seconds=TIMEOUT_SECONDS)
    assert all(map(torch.equal, one, other))
