"""The norm of many tensors: float32, safe against overflow and underflow of the sum of powers, over distinct tensors,
shards (summed) and replicas (once), the same plain number on every rank. In float64 where tensors are float64.

Within the library norms are float64 numbers: that of finite float32 gradients may be no float32 number itself.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from tightgrad.clip.local_norm import combined, host_norm, local_norm, local_norms, powers_fit, widest
from tightgrad.clip.placed import (
    are_distinct_and_plain_on_cpu,
    counted,
    counted_by_axes,
    reduce_over_,
    shard_axes,
)
from tightgrad.core.errors import ConfigError
from tightgrad.core.placement import Axes, shard_axes_along

LONGEST_UNIT_ROW = 4096
LARGEST = torch.finfo(torch.float32).max


def total_norm(tensors: Sequence[Tensor], norm_type: float = 2.0, *, is_void: bool = False) -> Tensor:
    """Return (sum |x|^p)^(1/p) over all elements of all tensors; p = inf is the largest |x|, p = 0 the count of
    non-zeros.

    Collective for DTensors: every rank of their meshes must call it with the same tensors in the same order.

    Args:
        tensors: plain, sparse or DTensor, of any floating or complex dtype; each storage counts once, a complex number
            by its modulus, and a `Partial("sum")` by the sum over ranks.
        norm_type: p, at least 0.
        is_void: this rank's part is not to be relied on: the norm is NaN here and on every rank that it is summed over.

    Returns:
        A scalar, plain and the same on every rank, on the tensors' device (the CPU when there are none), without a host
        sync: float64 if any tensor is float64 or complex128, else float32. NaN and inf come through.

    Raises:
        ConfigError: `norm_type` is negative or NaN.
        UnsupportedError: a DTensor whose placement is not Replicate, Shard, _StridedShard or `Partial("sum")`.
    """
    return narrowed(exact_norm(tensors, norm_type, is_void=is_void), tensors)


def exact_norm(tensors: Sequence[Tensor], norm_type: float = 2.0, *, is_void: bool = False) -> Tensor:
    """Return `total_norm` in float64, so that it is finite wherever all elements are finite float32 numbers."""
    _check(norm_type)
    if tensors and are_distinct_and_plain_on_cpu(tensors):
        return _on_cpu(math.nan if is_void else plain_norm(list(tensors), norm_type))
    groups = counted_by_axes(tensors)
    if not groups:
        return torch.zeros((), dtype=torch.float64)
    dtype = widest(values for members in groups.values() for values in members)
    if (
        norm_type in (1.0, 2.0)
        and dtype is torch.float32
        and all(values.is_cpu for members in groups.values() for values in members)
    ):
        return _norm_on_host(groups, norm_type, is_void)
    norms = []
    for axes, members in groups.items():
        parts = [local_norm(values, norm_type) for values in _by_device(members)]
        norm = _joined(parts, norm_type, dtype).reshape(1)
        norms.append(_over_shards(norm * math.nan if is_void else norm, axes, norm_type, widest(members)).squeeze(0))
    return _joined(norms, norm_type, dtype)


def plain_norm(kept: list[Tensor], norm_type: float = 2.0) -> float:
    """Return the norm of tensors, at least one, that are known to be distinct, dense and on this process's CPU."""
    _check(norm_type)
    return host_norm(kept, norm_type) if norm_type in (1.0, 2.0) else float(local_norm(kept, norm_type))


def narrowed(norm: Tensor, tensors: Iterable[Tensor]) -> Tensor:
    """Convert a float64 norm to what users get: float64 if any of the tensors is, else float32, inf if too large for
    that.
    """
    return norm if widest(tensors) is torch.float64 else norm.float()


def as_scalar(norm: float, tensors: Iterable[Tensor]) -> Tensor:
    """Return `narrowed` of a norm on the CPU that is known as a number."""
    dtype = widest(tensors)
    return _on_cpu(math.inf if dtype is torch.float32 and norm > LARGEST else norm, dtype)


def _norm_on_host(groups: dict[Axes, list[Tensor]], norm_type: float, is_void: bool) -> Tensor:
    """In plain numbers where possible: operators are slow right after a backward, when nothing is in the cache."""
    total = 0.0
    for axes, members in groups.items():
        norm = math.nan if is_void else host_norm(members, norm_type)
        power = norm if norm_type == 1.0 else norm * norm
        total += reduce_over_(_on_cpu(power), axes).item() if axes else power
    return _on_cpu(total if norm_type == 1.0 else math.sqrt(total))


def _on_cpu(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A scalar. Not by `torch.tensor`, which takes 0.2 to 0.4 ms after a backward."""
    return torch.full((), value, dtype=dtype, device="cpu")


def tensor_norms(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """Return the norm of each tensor: shape (len(tensors),), on the first tensor's device, the same on every rank;
    float64 if any tensor is, else float32.

    Collective for sharded tensors, like `total_norm`: one small all-reduce for each set of mesh axes.
    """
    return narrowed(exact_norms(tensors, norm_type), tensors)


def exact_norms(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """Return `tensor_norms` in float64."""
    _check(norm_type)
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    result = torch.zeros(len(tensors), dtype=torch.float64, device=tensors[0].device)
    groups: dict[Axes, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(shard_axes(tensor), []).append(index)
    for axes, indices in groups.items():
        members = [counted(tensors[index]) for index in indices]
        norms = local_norms(members, norm_type).to(result.device)
        norms = _over_shards(norms, axes, norm_type, widest(members))
        if len(groups) == 1:
            return norms
        result[torch.tensor(indices, device=result.device)] = norms
    return result


def unit_norms(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return 2-norms over `dims` (kept, with length 1) of this rank's part of the tensor: float64.

    Collective if the tensor is sharded along one of `dims`, or `Partial("sum")`. Units are then summed over shards;
    along other dimensions each rank has the units of its own part. On the CPU norms below 1e-18 may come out too small.
    """
    values, parts = counted(tensor), dims
    dtype = widest([values])
    if values.is_complex():
        values = torch.view_as_real(values.conj() if values.is_conj() else values)
        parts = (*dims, values.dim() - 1)
    norms = None
    if values.is_cpu and values.dtype is torch.float32 and values.numel():
        norms = _unit_norms_in_float32(values, parts)
    if norms is None or not bool(norms.isfinite().all()):
        norms = _unit_norms_in_float64(values, parts)
    if parts != dims:
        norms = norms.squeeze(-1)
    return _over_shards(norms.double(), shard_axes_along(tensor, dims), 2.0, dtype)


def _unit_norms_in_float64(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Squares of float64 numbers may leave its range, so these are divided by the largest of their unit first."""
    if values.dtype is not torch.float64 or not values.numel():
        norms: Tensor = vector_norm(values, 2.0, dims, keepdim=True, dtype=torch.float64)
        return norms
    largest = values.abs().amax(dims, keepdim=True)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    scaled: Tensor = scale * vector_norm(values / scale, 2.0, dims, keepdim=True)
    return scaled


def _unit_norms_in_float32(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """`vector_norm` adds in 16 lanes along contiguous rows, and in one elsewhere; `sum` adds in a tree."""
    numel = math.prod(values.size(dim) for dim in dims)
    is_row = values.is_contiguous() and dims == tuple(range(values.dim() - len(dims), values.dim()))
    if is_row and numel <= LONGEST_UNIT_ROW:
        norms: Tensor = vector_norm(values, 2.0, dims, keepdim=True)
        return norms
    return values.square().sum(dims, keepdim=True).sqrt()


def _check(norm_type: float) -> None:
    if not norm_type >= 0:
        raise ConfigError(f"norm_type={norm_type!r} must be at least 0; use 1, 2, inf, another positive number, or 0.")


def _by_device(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return list(groups.values())


def _over_shards(norms: Tensor, axes: Axes, norm_type: float, dtype: torch.dtype) -> Tensor:
    """Join float64 norms of parts that lie on several ranks, of tensors of `dtype`, the same on all of them."""
    if not axes:
        return norms
    if math.isinf(norm_type):
        # A maximum over ranks may drop NaN, a sum does not.
        is_nan = reduce_over_(norms.isnan().to(norms.dtype), axes)
        return torch.where(is_nan > 0, math.nan, reduce_over_(norms.nan_to_num(nan=0.0, posinf=math.inf), axes, "max"))
    if norm_type == 0:
        return reduce_over_(norms.clone(), axes)
    if powers_fit(norm_type, dtype):
        return reduce_over_(norms.pow(norm_type), axes).pow(1 / norm_type)
    largest = reduce_over_(norms.nan_to_num(nan=0.0, posinf=math.inf), axes, "max")
    shrunk = torch.where(norms == largest, (largest > 0).double(), norms / largest)  # 0 / 0 and inf / inf are NaN
    return largest * reduce_over_(shrunk.pow(norm_type), axes).pow(1 / norm_type)


def _joined(norms: list[Tensor], norm_type: float, dtype: torch.dtype) -> Tensor:
    """The norm of norms (float64 scalars) that may lie on several devices; on the first that is not the CPU."""
    if len(norms) == 1:
        return norms[0]
    device = next((norm.device for norm in norms if norm.device.type != "cpu"), norms[0].device)
    return combined(torch.stack([norm.to(device, non_blocking=True) for norm in norms]), norm_type, dtype)
