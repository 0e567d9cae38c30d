"""How a DTensor lies on its device mesh, told from the placements that are known and from no others.

`torch.distributed` is not imported here, nor is torch's private `_StridedShard` anywhere: the placement of FSDP2's
parameters on top of tensor parallelism, a subclass of Shard in torch 2.9 and a class of its own later. A placement is
known by the name and the module of its class, so that a subclass with another meaning is not taken for its parent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor
from torch.nn import Parameter

from tightgrad.core.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # noqa: TID251 - its type alone
    from typing_extensions import TypeIs

Axes: TypeAlias = tuple[tuple[Any, int], ...]
"""Axes of device meshes: the mesh, and the number of its dimension."""

_MODULE = "torch.distributed.tensor.placement_types"  # from torch 2.5 on
_SHARDS = ("Shard", "_StridedShard")


def is_dtensor(tensor: object) -> TypeIs[DTensor]:
    """Tell whether this is a DTensor, without importing torch.distributed."""
    return type(tensor) not in (Tensor, Parameter) and hasattr(tensor, "device_mesh") and hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, sharing its memory; a plain tensor is returned as it is."""
    part: Tensor = tensor.to_local() if is_dtensor(tensor) else tensor
    return part


def shard_axes(tensor: Tensor) -> Axes:
    """Return the mesh axes that hold different parts of the tensor; none of a plain tensor.

    Raises:
        UnsupportedError: a placement is not known.
    """
    return _axes(tensor, "shard")


def pending_axes(tensor: Tensor) -> Axes:
    """Return the mesh axes whose ranks hold summands of the tensor, `Partial("sum")`; none of a plain tensor.

    Raises:
        UnsupportedError: a placement is not known.
    """
    return _axes(tensor, "summand")


def shard_axes_along(tensor: Tensor, dims: tuple[int, ...]) -> Axes:
    """Return those of the `shard_axes` along which one of `dims` of the tensor is cut."""
    axes = shard_axes(tensor)
    return tuple(pair for pair in axes if int(_placements(tensor)[pair[1]].dim) % tensor.dim() in dims)


def lie_alike(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape are cut in the same way, or are both plain."""
    if is_dtensor(one) != is_dtensor(other):
        return False
    return not is_dtensor(one) or (_mesh(one) == _mesh(other) and _placements(one) == _placements(other))


def _axes(tensor: Tensor, wanted: str) -> Axes:
    if not is_dtensor(tensor):
        return ()
    mesh = _mesh(tensor)
    return tuple((mesh, axis) for axis, what in enumerate(_meanings(tensor)) if what == wanted)


def _meanings(tensor: Tensor) -> list[str]:
    """Of each mesh axis: "replica", "shard" or "summand"."""
    found = [_meaning(placement) for placement in _placements(tensor)]
    if "" in found:
        placement = _placements(tensor)[found.index("")]
        raise UnsupportedError(
            f"a tensor of shape {tuple(tensor.shape)} is placed as {placement!r} ({type(placement).__module__}."
            f"{type(placement).__name__}) on axis {found.index('')} of its device mesh (all its placements: "
            f"{_placements(tensor)}); known are torch's Replicate, Shard, _StridedShard and "
            'Partial("sum"). Redistribute it first: `tensor.redistribute(placements=[...])`, with Shard or Replicate '
            "on that axis."
        )
    return found


def _meaning(placement: Any) -> str:
    """An empty string if it is not known."""
    kind = type(placement)
    if kind.__module__ != _MODULE:
        return ""
    if kind.__name__ in _SHARDS:
        return "shard"
    if kind.__name__ == "Replicate":
        return "replica"
    return "summand" if kind.__name__ == "Partial" and placement.reduce_op == "sum" else ""


def _placements(tensor: Any) -> tuple[Any, ...]:
    return tuple(tensor.placements)


def _mesh(tensor: Any) -> Any:
    return tensor.device_mesh
