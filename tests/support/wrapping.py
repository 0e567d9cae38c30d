"""One small model under every wrapper, for bodies that run on real ranks."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

Batch = tuple[Tensor, Tensor]


def small_model(*, batch_norm: bool = False) -> nn.Sequential:
    """The same weights on every call; sizes that no number of ranks divides."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(33) if batch_norm else nn.Identity()
        return nn.Sequential(nn.Linear(20, 33), norm, nn.ReLU(), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 3))


def wrap(model: nn.Sequential, kind: str) -> nn.Module:
    """Wrap as "plain", "ddp", "fsdp2" or "hsdp" (two replicas)."""
    if kind == "plain":
        return model
    if kind == "ddp":
        return DistributedDataParallel(model)
    world_size = dist.get_world_size()
    mesh = (
        init_device_mesh("cpu", (world_size,))
        if kind == "fsdp2"
        else init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("replicate", "shard"))
    )
    fully_shard(model[3], mesh=mesh)
    return fully_shard(model, mesh=mesh)


class Branches(nn.Module):
    """A stem, and a branch that a micro-batch may leave out; the same weights on every call."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.stem, self.branch = nn.Linear(20, 16), nn.Linear(16, 16)

    def forward(self, inputs: Tensor, uses_branch: bool) -> Tensor:
        hidden = self.stem(inputs)
        return (self.branch(hidden) if uses_branch else hidden).square().mean()


def ragged_batches(rank: int, sizes: tuple[int, ...] = (8, 4, 6, 8, 2, 3, 5)) -> list[Batch]:
    """Batches of different sizes; each rank has one fewer than the rank before."""
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(size, 20, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for size in sizes[: len(sizes) - rank]
    ]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, copied."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().clone()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, copied."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
