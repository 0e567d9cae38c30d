"""Where a gradient's numbers lie: plain, sparse, or a DTensor over a device mesh. The only code of this folder that
knows, and the only one that talks to a mesh.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from tightgrad.core.errors import UnsupportedError

CACHED_NUMEL = 2**22
"""Float32 numbers that a CPU's last cache surely holds: 16 MiB."""

Axes: TypeAlias = tuple[tuple[DeviceMesh, int], ...]
"""The mesh axes that a tensor is cut along; none if every rank holds all of it."""


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors in order, each storage once (tied parameters share theirs), without empty ones of one rank."""
    seen: set[tuple[int, int]] = set()
    kept = []
    for tensor in tensors:
        values = tensor if type(tensor) is Tensor and tensor.layout is torch.strided else _numbers(tensor)
        key = _place(tensor, values)
        if key not in seen:
            seen.add(key)
            kept.append(tensor)
    return kept


def _place(tensor: Tensor, values: Tensor) -> tuple[int, int]:
    """The same for two tensors whose `values` are the same memory."""
    numel = values.numel()
    return (values.data_ptr(), numel) if numel else (id(tensor), 0)


def are_distinct_and_plain_on_cpu(tensors: Iterable[Tensor]) -> bool:
    """Whether no two share memory and `are_plain_on_cpu`, in one look."""
    seen = set()
    for tensor in tensors:
        if type(tensor) is not Tensor or not tensor.is_cpu or tensor.layout is not torch.strided:
            return False
        pointer = tensor.data_ptr()
        if pointer in seen:
            return False
        seen.add(pointer)
    return True


def are_plain_on_cpu(tensors: Iterable[Tensor]) -> bool:
    """Whether all are dense and lie wholly in this process's memory: the case that must not cost anything."""
    for tensor in tensors:
        if type(tensor) is not Tensor or not tensor.is_cpu or tensor.layout is not torch.strided:
            return False
    return True


def stored(tensor: Tensor) -> Tensor:
    """The numbers that this rank holds, sharing memory: a DTensor's local part, a sparse tensor's values.

    Raises:
        UnsupportedError: a DTensor that still has to be summed over ranks.
    """
    if isinstance(tensor, DTensor):
        shard_axes(tensor)
    return _numbers(tensor)


def counted(tensor: Tensor) -> Tensor:
    """The numbers that make this rank's part of the norm: as `stored`, with duplicate sparse indices added up.

    Unlike `stored` it does not look whether a DTensor still has to be summed; `shard_axes` does.
    """
    return tensor.coalesce()._values() if tensor.is_sparse else _numbers(tensor)


def _numbers(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            tensor = tensor.to_local()
    return tensor._values() if tensor.is_sparse else tensor


def is_plain(tensor: Tensor) -> bool:
    """Whether it is no DTensor."""
    return not isinstance(tensor, DTensor)


def shard_axes(tensor: Tensor) -> Axes:
    """The mesh axes that hold different parts of the tensor, to sum over; axes of replicas are left out.

    Raises:
        UnsupportedError: the tensor is a partial sum along some axis.
    """
    if not isinstance(tensor, DTensor):
        return ()
    mesh = tensor.device_mesh
    if any(placement.is_partial() for placement in tensor.placements):
        raise UnsupportedError(
            f"a gradient placed as {tensor.placements} is not summed over ranks yet; redistribute it to Shard or "
            "Replicate first."
        )
    return tuple((mesh, axis) for axis, placement in enumerate(tensor.placements) if placement.is_shard())


def counted_by_axes(tensors: Iterable[Tensor]) -> dict[Axes, list[Tensor]]:
    """What `counted` gives of `distinct` tensors, by their `shard_axes`, in one look.

    Raises:
        UnsupportedError: a DTensor that still has to be summed over ranks.
    """
    groups: dict[Axes, list[Tensor]] = {}
    unsharded: list[Tensor] = []
    mesh, placements, sharded = None, None, unsharded
    seen: set[tuple[int, int]] = set()
    for tensor in tensors:
        members = unsharded
        if isinstance(tensor, DTensor):
            if tensor.device_mesh is not mesh or tensor.placements != placements:
                mesh, placements = tensor.device_mesh, tensor.placements
                axes = shard_axes(tensor)
                sharded = groups.setdefault(axes, []) if axes else unsharded
            members = sharded
        values = _numbers(tensor)
        key = _place(tensor, values)
        if key not in seen:
            seen.add(key)
            members.append(tensor.coalesce()._values() if tensor.is_sparse else values)
    groups[()] = unsharded
    return {axes: members for axes, members in groups.items() if members}


def reduce_over_(values: Tensor, axes: Axes, op: str = "sum") -> Tensor:
    """Sum (or take the maximum of) small plain tensors over mesh axes. Collective on these axes' ranks.

    The groups' own methods are called: `torch.distributed`'s Python around them takes as long as the collective.
    """
    for mesh, axis in axes:
        group = mesh.get_group() if mesh.ndim == 1 else mesh.get_group(axis)  # the latter looks at more
        group.allreduce([values], dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM).wait()
    return values


def scale_(tensors: Iterable[Tensor], coefficient: Tensor) -> None:
    """Multiply each distinct tensor by one factor, in place.

    On the CPU a factor of 1 touches nothing; on other devices that would cost a host sync.
    """
    if not _is_one(coefficient):
        scale_distinct_(distinct(tensors), coefficient)


def _is_one(coefficient: Tensor) -> bool:
    """Whether it is known without a host sync to change nothing."""
    return coefficient.is_cpu and float(coefficient) == 1.0


def scale_distinct_(kept: list[Tensor], coefficient: Tensor) -> None:
    """`scale_` for tensors that are known to be distinct."""
    if _is_one(coefficient):
        return
    if coefficient.is_cpu and are_plain_on_cpu(kept):
        if kept:
            scale_plain_(kept, coefficient)
        return
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in kept:
        by_device.setdefault(tensor.device, []).append(stored(tensor))
    for device, values in by_device.items():
        torch._foreach_mul_(values, coefficient.to(device, non_blocking=True))
    touched(kept)


def scale_plain_(kept: list[Tensor], coefficient: Tensor) -> None:
    """Multiply tensors that are known to be distinct, dense and on this process's CPU, as the factor is.

    Those come first that the norm has read last: they are still in the cache.
    """
    first, numel = len(kept), 0
    while first and numel < CACHED_NUMEL:
        first -= 1
        numel += kept[first].numel()
    torch._foreach_mul_(kept[first:] + kept[:first], coefficient)


def scale_each_(tensors: Sequence[Tensor], coefficients: Tensor) -> None:
    """Multiply each tensor by its own factor, in place; `coefficients` has shape (len(tensors),).

    On the CPU a factor of 1 touches nothing.
    """
    if coefficients.device.type == "cpu":
        chosen = [index for index, factor in enumerate(coefficients.tolist()) if factor != 1.0]
    else:
        chosen = list(range(len(tensors)))
    factors = coefficients.unbind()
    if chosen:
        kept = [tensors[index] for index in chosen]
        torch._foreach_mul_([stored(tensor) for tensor in kept], [factors[index] for index in chosen])
        touched(kept)


def touched(tensors: Iterable[Tensor]) -> None:
    """Say that a DTensor's or a sparse tensor's numbers were changed: what remembers norms looks at its version."""
    for tensor in tensors:
        if isinstance(tensor, DTensor) or tensor.is_sparse:
            increment_version(tensor)


def coalesce_(tensors: Iterable[Tensor]) -> None:
    """Add up a sparse tensor's entries of the same index, in place: what acts on entries must see their sums."""
    for tensor in tensors:
        if tensor.is_sparse and not tensor.is_coalesced():
            tensor.copy_(tensor.coalesce())


def zero_nonfinite_(tensors: Iterable[Tensor]) -> None:
    """Set every inf and NaN to 0, in place."""
    kept = distinct(tensors)
    coalesce_(kept)
    for tensor in kept:
        stored(tensor).nan_to_num_(0.0, 0.0, 0.0)
    touched(kept)


def clamp_(tensors: Iterable[Tensor], max_value: float) -> None:
    """Limit every entry to [-max_value, max_value], in place; NaN stays NaN."""
    kept = distinct(tensors)
    if kept and max_value != float("inf"):
        coalesce_(kept)
        values = [stored(tensor) for tensor in kept]
        torch._foreach_clamp_min_(values, -max_value)
        torch._foreach_clamp_max_(values, max_value)
        touched(kept)
