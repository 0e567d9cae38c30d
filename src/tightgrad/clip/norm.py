"""The norm of many tensors: float32, safe against overflow and underflow of the sum of powers, over distinct tensors,
shards (summed) and replicas (once), the same plain number on every rank. In float64 where tensors are float64.

Within the library norms are float64 numbers: that of finite float32 gradients may be no float32 number itself.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from tightgrad.clip.dtensor import Groups, Kind, counted, grouped, kind, reduce_over_
from tightgrad.clip.local_norm import combined, local_norm, local_norms, powers_fit, scaled_norm, widest
from tightgrad.core.errors import ConfigError
from tightgrad.core.placement import Axes, shard_axes_along

LONGEST_UNIT_ROW = 4096


def total_norm(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """Return (sum |x|^p)^(1/p) over all elements of all tensors; p = inf is the largest |x|, p = 0 the count of
    non-zeros.

    Collective for DTensors: every rank of their meshes must call it with the same tensors in the same order.

    Args:
        tensors: plain, sparse or DTensor, of any floating or complex dtype; each storage counts once, a complex number
            by its modulus, and a `Partial("sum")` by the sum over ranks.
        norm_type: p, at least 0.

    Returns:
        A scalar, plain and the same on every rank, on the tensors' device (the CPU when there are none), without a host
        sync: float64 if any tensor is float64 or complex128, else float32. NaN and inf come through.

    Raises:
        ConfigError: `norm_type` is negative or NaN.
        UnsupportedError: a DTensor whose placement is not Replicate, Shard, _StridedShard or `Partial("sum")`.
    """
    return narrowed(exact_norm(tensors, norm_type), tensors)


def exact_norm(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """Return `total_norm` in float64, so that it is finite wherever all elements are finite float32 numbers."""
    return norm_of_groups(grouped(tensors), norm_type)


def norm_of_groups(groups: Groups, norm_type: float) -> Tensor:
    """Return `exact_norm` of `grouped` tensors."""
    _check(norm_type)
    norms = []
    for (axes, _, dtype), tensors in groups.items():
        norm = local_norm(list(map(counted, tensors)), norm_type)
        norms.append(over_shards(norm, axes, norm_type, dtype))
    if len(norms) <= 1:
        return norms[0] if norms else torch.zeros((), dtype=torch.float64, device="cpu")
    device = next((norm.device for norm in norms if not norm.is_cpu), norms[0].device)
    dtype = widest(tensors[0] for tensors in groups.values())
    return combined(torch.stack([norm.to(device, non_blocking=True) for norm in norms]), norm_type, dtype)


def narrowed(norm: Tensor, tensors: Iterable[Tensor]) -> Tensor:
    """Convert a float64 norm to what users get: float64 if any of the tensors is, else float32, inf if too large for
    that.
    """
    return norm if widest(tensors) is torch.float64 else norm.float()


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
        return torch.zeros(0, dtype=torch.float64, device="cpu")
    result = torch.zeros(len(tensors), dtype=torch.float64, device=tensors[0].device)
    groups: dict[Kind, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(kind(tensor), []).append(index)
    for (axes, _, dtype), indices in groups.items():
        norms = local_norms([counted(tensors[index]) for index in indices], norm_type)
        norms = over_shards(norms, axes, norm_type, dtype).to(result.device)
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
    return over_shards(norms.double(), shard_axes_along(tensor, dims), 2.0, dtype)


def _unit_norms_in_float64(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    if values.dtype is torch.float64 and values.numel():
        return scaled_norm(values, 2.0, dims)
    norms: Tensor = vector_norm(values, 2.0, dims, keepdim=True, dtype=torch.float64)
    return norms


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


def over_shards(norms: Tensor, axes: Axes, norm_type: float, dtype: torch.dtype) -> Tensor:
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


class CachedNorm:
    """Measures norms as `exact_norm` does, and remembers them by the tensors' identities and version counters."""

    def __init__(self) -> None:
        self._last: dict[tuple[float, tuple[tuple[int, int], ...]], Tensor] = {}
        self._alive: list[Tensor] = []

    def __call__(self, tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
        """Return the norm over all elements of all tensors."""
        key = (norm_type, tuple((id(tensor), tensor._version) for tensor in tensors))
        if key not in self._last:
            self._alive.extend(tensors)  # an id is unique only while its tensor lives
            self._last[key] = exact_norm(tensors, norm_type)
        return self._last[key]
