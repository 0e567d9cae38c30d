"""Which parameters are split over ranks, and by whom. A model that more than data parallelism splits is refused.

An axis of a mesh is data-parallel because the wrapper says so, never because of its size: `fully_shard`'s own mesh is,
any other axis that a parameter lies on is tensor, expert or sequence parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor, nn

from tightgrad.adapters.parts.fsdp2_torch import fsdp_params
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Collective

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
    from torch.distributed.tensor import DTensor, Placement

    Placed = tuple[DeviceMesh, tuple[Placement, ...]]


def check_not_split(module: nn.Module, asks: str) -> None:
    """Raise if any parameter of a module outside of `fully_shard`, frozen or not, is split over ranks.

    Args:
        module: a plain module, or the one inside DistributedDataParallel.
        asks: the function that was called, for the message.

    Raises:
        UnsupportedError: names the parameter and its mesh.
    """
    managed = {id(param.sharded_param): param for param in fsdp_params(module)}  # a part with a wrapper of its own
    for name, parameter in module.named_parameters():
        placed = _placed(parameter)
        param = managed.get(id(parameter))
        if placed is not None and (param is None or placed[0] != param.mesh_info.mesh):
            raise _tensor_parallel(name, placed, asks)


def check_split_by_fsdp2(model: nn.Module) -> None:
    """Raise unless `fully_shard`, and nothing else, splits the parameters of a model.

    Raises:
        UnsupportedError: a parameter lies on another mesh too, is only replicated, or was left out by `fully_shard`.
    """
    managed = {id(param.sharded_param): param for param in fsdp_params(model)}
    for name, parameter in model.named_parameters():
        param = managed.get(id(parameter))
        if param is not None:
            _check_own_mesh(name, parameter, param)
        elif (placed := _placed(parameter)) is not None:
            raise _tensor_parallel(name, placed, "attach")
        elif parameter.requires_grad:
            raise UnsupportedError(
                f"{name!r} can be trained but fully_shard does not manage it (ignored_params=, or it was added after "
                "fully_shard was called), so nobody sums its gradient over ranks. Take it out of ignored_params and "
                "call fully_shard again on a new model, or freeze it: "
                f"model.get_parameter({name!r}).requires_grad_(False)."
            )


def check_is_mesh_of(name: str, mesh: DeviceMesh, collective: Collective) -> None:
    """Raise if the ranks of a parameter's mesh are not those of a collective, however many there are of each.

    Raises:
        UnsupportedError: they are others.
    """
    group = getattr(collective, "group", None)
    if not isinstance(group, dist.ProcessGroup):
        return
    ranks, given = sorted(mesh.mesh.flatten().tolist()), sorted(dist.get_process_group_ranks(group))
    if ranks != given:
        raise UnsupportedError(
            f"{name!r} is sharded over the ranks {ranks}, but collective= has the ranks {given}; pass the collective "
            "of the ranks that train this model: tg.collectives.TorchCollective(mesh.get_group())."
        )


def check_whole_mesh(parameters: Mapping[str, Tensor], collective: Collective) -> None:
    """Raise unless the mesh of every parameter, of one axis or two (HSDP), has the ranks of a collective.

    Raises:
        UnsupportedError: it has fewer, or others.
    """
    for name, parameter in parameters.items():
        assert is_dtensor(parameter)
        if parameter.device_mesh.size() != collective.world_size:
            raise mesh_is_smaller(name, parameter, collective.world_size)
        check_is_mesh_of(name, parameter.device_mesh, collective)


def smaller_mesh(parameters: Mapping[str, Tensor], world_size: int) -> tuple[str, DTensor] | None:
    """Return the first parameter and its name, if its mesh has one dimension and fewer ranks than `world_size`."""
    for name, parameter in parameters.items():
        assert is_dtensor(parameter)
        mesh = parameter.device_mesh
        return (name, parameter) if mesh.ndim == 1 and mesh.size() < world_size else None
    return None


def mesh_is_smaller(name: str, parameter: DTensor, world_size: int) -> UnsupportedError:
    """Return the error for a model whose mesh has fewer ranks than are to train it."""
    size = parameter.device_mesh.size()
    return UnsupportedError(
        f"{name!r} lies on a mesh of {size} ranks of {world_size}, and only these {size} would sum its gradient. If "
        f"these {size} ranks train this model alone, pass attach(..., collective=tg.collectives.TorchCollective("
        "mesh.get_group())). If each such mesh is a node with a copy of one model, pass attach(..., collective="
        "tg.collectives.TorchCollective()) and add compress=tg.Compress(...) to the plan, which then runs between "
        "nodes; or call fully_shard with a two-dimensional mesh of all ranks (HSDP)."
    )


def like_sharded(parameter: Tensor, local: Tensor) -> Tensor:
    """Return a tensor sharded as `parameter` is, of which `local` is this rank's part."""
    from torch.distributed.tensor import DTensor  # loads sympy; whoever has one has loaded it

    assert is_dtensor(parameter)
    mesh, placements = parameter.device_mesh, parameter.placements
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def _check_own_mesh(name: str, parameter: Tensor, param: FSDPParam) -> None:
    info = param.mesh_info
    if info.shard_mesh_dim is None:
        raise UnsupportedError(
            f"{name!r} is replicated by torch's replicate(), which keeps whole parameters on each rank; use "
            "DistributedDataParallel, or fully_shard."
        )
    assert is_dtensor(parameter)
    # What was a DTensor before fully_shard (`is_dtensor`, private in torch 2.9 to 2.14) has axes besides its own mesh.
    if getattr(param, "is_dtensor", False) or parameter.device_mesh != info.mesh:
        raise _tensor_parallel(name, (parameter.device_mesh, parameter.placements), "attach", own=info.mesh)


def _placed(parameter: Tensor) -> Placed | None:
    """Return where a parameter lies if it is a DTensor.

    DistributedDataParallel(device_mesh=) over a part of a mesh turns DTensors into plain tensors between two forwards,
    and keeps what they were in `_st_info` (private in torch 2.9 to 2.14).
    """
    if is_dtensor(parameter):
        return parameter.device_mesh, parameter.placements
    spec = getattr(parameter, "_st_info", None)
    return None if spec is None else (spec.mesh, spec.placements)


def _tensor_parallel(name: str, placed: Placed, asks: str, own: DeviceMesh | None = None) -> UnsupportedError:
    mesh, placements = placed
    names = mesh.mesh_dim_names or tuple(map(str, range(mesh.ndim)))
    axes = ", ".join(
        f"{axis}: {size} ({placement!r})" for axis, size, placement in zip(names, mesh.shape, placements, strict=True)
    )
    besides = "" if own is None else f", of which fully_shard's own mesh is {own.mesh_dim_names or tuple(own.shape)}"
    return UnsupportedError(
        f"{name!r} is a DTensor on a mesh with the axes {axes}{besides}: the model is split by tensor, expert or "
        f"sequence parallelism, and {asks} handles data parallelism only: fully_shard over a mesh of data-parallel "
        "ranks, or DistributedDataParallel of plain tensors. For such a model keep your own loop and clip with "
        "tg.clip_grad_norm_(model.parameters(), max_norm)."
    )
