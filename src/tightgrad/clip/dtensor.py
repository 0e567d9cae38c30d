"""Where a gradient's numbers lie: plain, sparse, or a DTensor over a device mesh. The only code of this folder that
knows, and the only one that talks to a mesh.
"""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from tightgrad.clip.fast_cpu import still_cached_first
from tightgrad.clip.local_norm import WIDE
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.placement import Axes, is_dtensor, lie_alike, pending_axes, shard_axes

Kind: TypeAlias = tuple[Axes, torch.device, torch.dtype]
Groups: TypeAlias = dict[Kind, list[Tensor]]


def kind(tensor: Tensor) -> Kind:
    """Return what tensors that one call takes have in common: the mesh axes that they are cut along, device, dtype."""
    return () if type(tensor) is Tensor else shard_axes(tensor), tensor.device, tensor.dtype


def grouped(tensors: Iterable[Tensor]) -> Groups:
    """Return the distinct tensors by kind, in the same order on every rank."""
    groups: Groups = {}
    for tensor in distinct(tensors):
        groups.setdefault(kind(tensor), []).append(tensor)
    return groups


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """List the tensors in order, each storage once (tied parameters share theirs), without empty ones of one rank."""
    kept: dict[tuple[int, int], Tensor] = {}
    for tensor in tensors:
        values = _numbers(tensor)
        numel = values.numel()
        kept.setdefault((values.data_ptr(), numel) if numel else (id(tensor), 0), tensor)
    return list(kept.values())


def stored(tensor: Tensor) -> Tensor:
    """Return the numbers that this rank holds, sharing memory, but for their signs: a DTensor's local part, a sparse
    tensor's values, of `Partial("sum")` this rank's summand.

    Raises:
        UnsupportedError: a DTensor whose placement is not known.
    """
    if type(tensor) is not Tensor:
        shard_axes(tensor)
    values = _numbers(tensor)
    # Operators on lists refuse to change what is lazily conjugated or negated.
    if values.is_conj():
        values = values.conj()
    return torch._neg_view(values) if values.is_neg() else values  # torch 2.9 to 2.14 have no public name for it


def counted(tensor: Tensor) -> Tensor:
    """Return the numbers that make this rank's part of the norm: as `stored`, with duplicate sparse indices added up,
    and `Partial("sum")` summed over ranks. Collective if it is that.
    """
    if tensor.is_sparse:
        return tensor.coalesce()._values()
    if not is_dtensor(tensor):
        return tensor
    values, pending = _numbers(tensor), pending_axes(tensor)
    return _summed(values, pending) if pending else values


def _summed(values: Tensor, axes: Axes) -> Tensor:
    """A copy, summed over mesh axes. Collective."""
    total = values.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    reduce_over_(torch.view_as_real(total) if total.is_complex() else total, axes)
    return total


def gather_summands_(tensors: Iterable[Tensor]) -> None:
    """Let the first rank of each axis of `Partial("sum")` hold the whole sum and the others zeros, in place, so that
    what leaves zero at zero can be done entry by entry. Collective if there is one.
    """
    for tensor in tensors:
        if is_dtensor(tensor) and (pending := pending_axes(tensor)):
            values = _numbers(tensor)
            total = _summed(values, pending)
            is_first = all(mesh.get_local_rank(axis) == 0 for mesh, axis in pending)
            values.copy_(total) if is_first else values.zero_()


def placed_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor`, cut as `like` is, or as that would be once summed. Collective unless they are cut alike.

    Raises:
        UnsupportedError: they are on different meshes, or only one is a DTensor.
    """
    if not is_dtensor(tensor) or not is_dtensor(like) or tensor.device_mesh != like.device_mesh:
        if lie_alike(tensor, like):
            return tensor
        raise UnsupportedError(
            f"a gradient of shape {tuple(like.shape)} is {_described(like)}, its parameter {_described(tensor)}; "
            "redistribute the gradient to the parameter's mesh and placements first."
        )
    from torch.distributed.tensor import Replicate  # loads sympy; whoever has a DTensor has loaded it

    pending = {axis for _, axis in pending_axes(like)}
    wanted = [Replicate() if axis in pending else placement for axis, placement in enumerate(like.placements)]
    return tensor if list(tensor.placements) == wanted else tensor.redistribute(placements=wanted)


def _described(tensor: Tensor) -> str:
    return f"placed as {tensor.placements} on {tensor.device_mesh}" if is_dtensor(tensor) else "a plain tensor"


def _numbers(tensor: Tensor) -> Tensor:
    if type(tensor) is not Tensor and is_dtensor(tensor):
        with torch.no_grad():
            tensor = tensor.to_local()
    return tensor._values() if tensor.is_sparse else tensor


def reduce_over_(values: Tensor, axes: Axes, op: str = "sum") -> Tensor:
    """Sum (or take the maximum of) a plain real tensor over mesh axes, in place. Collective on these axes' ranks."""
    for mesh, axis in axes:
        dist.all_reduce(values, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM, mesh.get_group(axis))
    return values


def scale_(tensors: Iterable[Tensor], coefficient: Tensor) -> None:
    """Multiply each distinct tensor by one factor, in place.

    On the CPU a factor of 1 touches nothing; on other devices that would cost a host sync.
    """
    if not is_one(coefficient):
        scale_groups_(grouped(tensors), coefficient)


def scale_groups_(groups: Groups, coefficient: Tensor) -> None:
    """Multiply `grouped` tensors by one factor, in place, be it 1."""
    for (_, device, dtype), tensors in groups.items():
        # A factor of a wider dtype than the gradients' would take torch's slow way.
        factor = coefficient.double() if dtype in WIDE else coefficient.float()
        torch._foreach_mul_(still_cached_first(list(map(stored, tensors))), factor.to(device, non_blocking=True))
        touched(tensors)


def is_one(coefficient: Tensor) -> bool:
    """Tell whether a factor changes nothing, without a host sync: never of one that is not on the CPU."""
    return coefficient.is_cpu and float(coefficient) == 1.0


def scale_each_(tensors: Sequence[Tensor], coefficients: Tensor) -> None:
    """Multiply each tensor by its own factor, in place; `coefficients` has shape (len(tensors),).

    On the CPU a factor of 1 touches nothing.
    """
    if coefficients.device.type == "cpu":
        chosen = [index for index, factor in enumerate(coefficients.tolist()) if factor != 1.0]
    else:
        chosen = list(range(len(tensors)))
    narrow = coefficients.float().unbind()
    wide = coefficients.double().unbind() if any(tensor.dtype in WIDE for tensor in tensors) else narrow
    factors = [(wide if tensor.dtype in WIDE else narrow)[index] for index, tensor in enumerate(tensors)]
    if chosen:
        kept = [tensors[index] for index in chosen]
        torch._foreach_mul_([stored(tensor) for tensor in kept], [factors[index] for index in chosen])
        touched(kept)


def touched(tensors: Iterable[Tensor]) -> None:
    """Mark a DTensor's or a sparse tensor's numbers as changed: what remembers norms looks at its version."""
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.is_sparse:
            increment_version(tensor)


def coalesce_(tensors: Iterable[Tensor]) -> None:
    """Add up a sparse tensor's entries of the same index, in place: what acts on entries must see their sums."""
    for tensor in tensors:
        if tensor.is_sparse and not tensor.is_coalesced():
            tensor.copy_(tensor.coalesce())


def zero_nonfinite_(tensors: Iterable[Tensor]) -> None:
    """Set every inf and NaN to 0, in place; a complex entry as a whole. Collective if any is `Partial("sum")`."""
    kept = distinct(tensors)
    coalesce_(kept)
    gather_summands_(kept)
    for tensor in kept:
        values = stored(tensor)
        if values.is_complex():
            values.masked_fill_(~torch.view_as_real(values).isfinite().all(-1), 0.0)
        else:
            values.nan_to_num_(0.0, 0.0, 0.0)
    touched(kept)


def clamp_(tensors: Iterable[Tensor], max_value: float) -> None:
    """Limit every entry to [-max_value, max_value], in place; NaN stays NaN. Of a complex entry the real and the
    imaginary part are limited each. Collective if any is `Partial("sum")`.
    """
    kept = distinct(tensors)
    if kept and max_value != float("inf"):
        coalesce_(kept)
        gather_summands_(kept)
        values = [stored(tensor) for tensor in kept]
        values = [torch.view_as_real(value) if value.is_complex() else value for value in values]
        torch._foreach_clamp_min_(values, -max_value)
        torch._foreach_clamp_max_(values, max_value)
        touched(kept)
