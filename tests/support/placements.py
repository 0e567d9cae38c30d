"""DTensors of known values on four ranks: every placement that gradients have under FSDP2 and tensor parallelism."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

SHAPES: dict[str, tuple[int, ...]] = {
    "strided": (8, 3),
    "strided uneven": (6, 4),
    "strided columns": (3, 8),
    "both rows": (5, 4),
    "rows and columns": (5, 6),
    "tensor-parallel only": (7, 2),
    "columns only": (2, 5),
    "almost empty": (1,),
    "empty strided": (2,),
    "replicated": (4, 2),
    "one mesh": (5, 2),
    "plain": (3, 3),
}
# DTensor.full_tensor of torch 2.9.1, which the tests compare with, loses rows of tensors that tensor parallelism and
# fully_shard cut unevenly. Norms of such tensors are right there too.
PUTS_UNEVEN_BACK = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
if not PUTS_UNEVEN_BACK:
    for _name in ("strided uneven", "empty strided"):
        del SHAPES[_name]
SUMMANDS: dict[str, tuple[int, ...]] = {"sum": (3, 4), "sum of rows": (4, 3), "sum on one mesh": (5,)}


def make_mesh() -> DeviceMesh:
    """Two by two."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))


def values(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Normal numbers, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return {name: (torch.randn(s, generator=generator, dtype=wide) * scale).to(dtype) for name, s in shapes.items()}


def place(name: str, value: Tensor, mesh: DeviceMesh) -> Tensor:
    """`value`, as the name says."""
    placements: dict[str, Sequence[Any]] = {
        "both rows": [Shard(0), Shard(0)],
        "rows and columns": [Shard(0), Shard(1)],
        "tensor-parallel only": [Replicate(), Shard(0)],
        "columns only": [Shard(1), Replicate()],
        "almost empty": [Shard(0), Replicate()],
        "replicated": [Replicate(), Replicate()],
    }
    if "strided" in name:
        return strided(value, 1 if "columns" in name else 0, mesh)
    if name == "plain":
        return value.clone()
    if name == "one mesh":
        return distribute_tensor(value.clone(), mesh["dp"], [Shard(0)])
    if name in SUMMANDS:
        return summands(name, value, mesh)
    return distribute_tensor(value.clone(), mesh, placements[name])


def strided(value: Tensor, dim: int, mesh: DeviceMesh) -> Tensor:
    """Cut along `dim` by tensor parallelism first and by data parallelism then, as FSDP2 does."""
    local = _chunk(_chunk(value, dim, mesh["tp"]), dim, mesh["dp"]).contiguous().clone()
    lies = [_StridedShard(dim, split_factor=2), Shard(dim)]
    return DTensor.from_local(local, mesh, lies, run_check=False, shape=value.shape, stride=value.stride())


def summands(name: str, value: Tensor, mesh: DeviceMesh) -> Tensor:
    """Ranks hold numbers that add up to `value` only together."""
    if name == "sum on one mesh":
        mesh = mesh["tp"]
        share = 3 if mesh.get_local_rank() else -2
        return DTensor.from_local(value * share, mesh, [Partial()], run_check=False)
    if name == "sum of rows":
        share = 3 if mesh.get_local_rank("dp") else -2
        local = _chunk(value, 0, mesh["tp"]) * share
        lies: list[Any] = [Partial(), Shard(0)]
        return DTensor.from_local(local, mesh, lies, run_check=False, shape=value.shape, stride=value.stride())
    return DTensor.from_local(value * (1, -2, 4, -2)[dist.get_rank()], mesh, [Partial(), Partial()], run_check=False)


def _chunk(value: Tensor, dim: int, mesh: DeviceMesh) -> Tensor:
    chunks = value.chunk(mesh.size(), dim)
    index = mesh.get_local_rank()
    return chunks[index] if index < len(chunks) else value.narrow(dim, 0, 0)


def whole(tensor: Tensor) -> Tensor:
    """All numbers. Collective if it is a DTensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    first, *others = tensor.placements
    if not isinstance(first, _StridedShard) or not others:
        return tensor.full_tensor()
    # By hand: torch 2.9 puts pieces of unequal length together in another order.
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, tensor.to_local().detach().resolve_conj())
    columns = [torch.cat([pieces[rank] for rank in ranks], first.dim) for ranks in tensor.device_mesh.mesh.t().tolist()]
    return torch.cat(columns, first.dim)
