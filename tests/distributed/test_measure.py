"""Loss and norm under an empty plan on real ranks: one rank that asks is enough, and sharded norms do not hang."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks


def measured(wrapper: str) -> tuple[float | None, float | None, float]:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    if wrapper == "ddp":
        model = DistributedDataParallel(model)
    else:
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    rank = dist.get_rank()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(), measure=rank == 1)
    for window in pipe.windows([torch.full((4, 6), 1.0 + rank)]):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        record = pipe.step()
    return record.loss, record.grad_norm, record.weight


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_every_rank_has_the_norm_of_the_mean_gradient(wrapper: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    losses = [model(torch.full((4, 6), 1.0 + rank)).square().mean() for rank in range(2)]
    (sum(losses) / 2).backward()
    norm = float(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
    found = run_ranks(2, measured, wrapper)
    assert [weight for _, _, weight in found] == [2.0, 2.0], "as under a plan that only guards"
    assert [loss for loss, _, _ in found] == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    assert [norm_there for _, norm_there, _ in found] == pytest.approx([norm, norm], rel=1e-5)
