"""`init_process_group()` without a backend: bytes are counted for the backend that sends, under FSDP2 too."""

import tempfile

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import small_model

PLANS = (
    tg.Plan(tg.Accumulate(2, sync="last"), clip=tg.clip.GlobalNorm(1.0)),
    tg.Plan(tg.Accumulate(2, sync="every"), clip=tg.clip.GlobalNorm(1.0)),
    tg.Plan(tg.Accumulate(2), tg.Compress(tg.codecs.IntBlock(8))),
)


def wire_bytes(mesh, hsdp):
    found = []
    for plan in PLANS[: 2 if hsdp else 3]:
        model = fully_shard(small_model(), mesh=mesh)
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
        for window in pipe.windows([torch.ones(2, 20)] * 2):
            for batch in window:
                pipe.backward(model(batch).square().mean())
            found.append(pipe.step().wire_bytes)
    return found


def mesh_of_all(hsdp):
    ranks = dist.get_world_size()
    return init_device_mesh("cpu", (2, ranks // 2) if hsdp else (ranks,), mesh_dim_names=("r", "s") if hsdp else ("s",))


def with_and_without_a_name(folder, hsdp):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = [wire_bytes(mesh_of_all(hsdp), hsdp)]
    for backend in (None, "cpu:gloo"):
        dist.barrier()
        dist.destroy_process_group()
        dist.init_process_group(backend, init_method=f"file://{folder}/{backend}", rank=rank, world_size=ranks)
        found.append(wire_bytes(mesh_of_all(hsdp), hsdp))
    return found


@pytest.mark.parametrize(("hsdp", "ranks"), [(False, 2), pytest.param(True, 4, marks=pytest.mark.slow)])
def test_bytes_under_fsdp2_are_those_of_gloo_whatever_the_user_called_it(hsdp, ranks):
    with tempfile.TemporaryDirectory() as folder:
        for named, unnamed, by_device in run_ranks(ranks, with_and_without_a_name, folder, hsdp):
            assert all(named)
            assert named == unnamed == by_device
