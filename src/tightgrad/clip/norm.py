"""The norm of many tensors: float32, safe against overflow and underflow of the sum of powers, over distinct tensors,
shards (summed) and replicas (once), the same plain number on every rank.

Float32 on the CPU takes two steps. First, sums of powers are taken in float32 over rows of up to 2048 numbers, which
is as fast as `torch._foreach_norm`, and the rows are added up in float64. (One float32 sum over a large tensor
is not right: the norm of 2.5 million equal numbers is off by 0.2 %.) Then, only if the result says that squares
may have overflowed or lost digits, all is done again in float64, where they cannot. On other devices a look at the
result would wait for the device, so sums are in float64 from the start.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from tightgrad.clip.placed import (
    Axes,
    are_distinct_and_plain_on_cpu,
    are_plain_on_cpu,
    counted,
    distinct,
    reduce_over_,
    shard_axes,
)
from tightgrad.clip.rows import row_norms
from tightgrad.core.errors import ConfigError

NUMEL_IN_ONE_SUM = 32768
NUMEL_OF_NO_HURRY = 65536  # float64 from the start
LONGEST_UNIT_ROW = 4096
CHUNK_NUMEL = 2**18
# A float32 square below 2^-126 loses digits, at most that much each. From this mean square on, 1e8 times larger, the
# loss is below 1e-8 of the sum.
SMALLEST_MEAN_SQUARE = 2.0**-126 * 1e8
LARGEST_PLAIN_POWER = 4.0  # |x|^4 of any float32 number fits into float64


def total_norm(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """(sum |x|^p)^(1/p) over all elements of all tensors; p = inf is the largest |x|, p = 0 the count of non-zeros.

    Collective for sharded tensors: every rank of their meshes must call it with the same tensors in the same order.

    Args:
        tensors: plain, sparse or DTensor, of any floating dtype; each storage counts once.
        norm_type: p, at least 0.

    Returns:
        A float32 scalar, plain and the same on every rank, on the tensors' device (the CPU when there are none),
        without a host sync. NaN and inf come through.

    Raises:
        ConfigError: `norm_type` is negative or NaN.
        UnsupportedError: a DTensor that still has to be summed over ranks.
    """
    if tensors and are_distinct_and_plain_on_cpu(tensors):
        return plain_norm(list(tensors), norm_type)
    return distinct_norm(distinct(tensors), norm_type)


def distinct_norm(kept: list[Tensor], norm_type: float = 2.0) -> Tensor:
    """`total_norm` of tensors that are known to be distinct."""
    if kept and are_plain_on_cpu(kept):
        return plain_norm(kept, norm_type)
    _check(norm_type)
    norms = []
    for axes, members in _by_axes(kept).items():
        parts = [_local_norm(values, norm_type) for values in _by_device(map(counted, members))]
        norms.append(_over_shards(_joined(parts, norm_type).reshape(1), axes, norm_type).squeeze(0))
    return _joined(norms, norm_type).float() if norms else torch.zeros(())


def plain_norm(kept: list[Tensor], norm_type: float = 2.0) -> Tensor:
    """`total_norm` of tensors, at least one, that are known to be distinct, dense and on this process's CPU."""
    _check(norm_type)
    return _local_norm(kept, norm_type).float()


def tensor_norms(tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """The norm of each tensor: float32, shape (len(tensors),), on the first tensor's device, the same on every rank.

    Collective for sharded tensors, like `total_norm`: one small all-reduce for each set of mesh axes.
    """
    _check(norm_type)
    if not tensors:
        return torch.zeros(0)
    result = torch.zeros(len(tensors), dtype=torch.float64, device=tensors[0].device)
    groups: dict[Axes, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(shard_axes(tensor), []).append(index)
    for axes, indices in groups.items():
        norms = _local_norms([counted(tensors[index]) for index in indices], norm_type).to(result.device)
        norms = _over_shards(norms, axes, norm_type)
        if len(groups) == 1:
            return norms.float()
        result[torch.tensor(indices, device=result.device)] = norms
    return result.float()


def unit_norms(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """2-norms over `dims` (kept, with length 1) of this rank's part of the tensor: float32.

    Collective if the tensor is sharded along one of `dims`. Units are then summed over shards; along other dimensions
    each rank has the units of its own part. On the CPU a norm below 1e-18 may come out too small.
    """
    values = counted(tensor)
    norms = None
    if values.device.type == "cpu" and values.dtype is torch.float32 and values.numel():
        norms = _unit_norms_in_float32(values, dims)
    if norms is None or not bool(norms.isfinite().all()):
        norms = vector_norm(values, 2.0, dims, keepdim=True, dtype=torch.float64)
    inside = tuple(
        (mesh, axis)
        for mesh, axis in shard_axes(tensor)
        if tensor.placements[axis].dim % tensor.dim() in dims  # type: ignore[attr-defined]
    )
    return _over_shards(norms.double(), inside, 2.0).float() if inside else norms.float()


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


def _by_axes(tensors: Sequence[Tensor]) -> dict[Axes, list[Tensor]]:
    groups: dict[Axes, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(shard_axes(tensor) if type(tensor) is not Tensor else (), []).append(tensor)
    return groups


def _by_device(tensors: Iterator[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device, []).append(tensor)
    return list(groups.values())


def _over_shards(norms: Tensor, axes: Axes, norm_type: float) -> Tensor:
    if not axes:
        return norms
    if math.isinf(norm_type):
        # A maximum over ranks may drop NaN, a sum does not.
        is_nan = reduce_over_(norms.isnan().to(norms.dtype), axes)
        return torch.where(is_nan > 0, math.nan, reduce_over_(norms.nan_to_num(nan=0.0, posinf=math.inf), axes, "max"))
    if norm_type == 0:
        return reduce_over_(norms.clone(), axes)
    if norm_type <= LARGEST_PLAIN_POWER:
        return reduce_over_(norms.pow(norm_type), axes).pow(1 / norm_type)
    largest = reduce_over_(norms.clone(), axes, "max")
    shrunk = torch.where(largest > 0, norms / largest, norms)
    return largest * reduce_over_(shrunk.pow(norm_type), axes).pow(1 / norm_type)


def _joined(norms: list[Tensor], norm_type: float) -> Tensor:
    """The norm of norms (float64 scalars) that may lie on several devices; on the first that is not the CPU."""
    if len(norms) == 1:
        return norms[0]
    device = next((norm.device for norm in norms if norm.device.type != "cpu"), norms[0].device)
    return _combined(torch.stack([norm.to(device, non_blocking=True) for norm in norms]), norm_type)


def _combined(norms: Tensor, norm_type: float) -> Tensor:
    """The norm of the norms (float64, 1-D)."""
    return norms.sum() if norm_type == 0 else _norm_in_float64(norms, norm_type)


def _norm_in_float64(values: Tensor, norm_type: float) -> Tensor:
    if norm_type == 0:
        return torch.count_nonzero(values).double()
    if math.isinf(norm_type):
        return vector_norm(values, norm_type).double() if values.numel() else values.new_zeros((), dtype=torch.float64)
    dtype = torch.complex128 if values.is_complex() else torch.float64
    if norm_type <= LARGEST_PLAIN_POWER or not values.numel():
        norm: Tensor = vector_norm(values, norm_type, dtype=dtype)
        return norm
    largest = vector_norm(values, math.inf).double()
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    scaled = scale * vector_norm(values.to(dtype) / scale, norm_type)
    return torch.where(largest.isfinite(), scaled, largest)


def _local_norm(tensors: list[Tensor], norm_type: float) -> Tensor:
    """The norm over plain tensors of one device: a float64 scalar."""
    numel = sum(tensor.numel() for tensor in tensors)
    if tensors[0].device.type == "cpu" and norm_type in (1.0, 2.0) and numel > NUMEL_OF_NO_HURRY:
        norm = _norm_from_float32_sums(tensors, norm_type)
        if _is_trusted(norm, numel, norm_type):
            return torch.tensor(norm, dtype=torch.float64)
    return _combined(_norms_in_float64(tensors, norm_type), norm_type)


def _local_norms(tensors: list[Tensor], norm_type: float) -> Tensor:
    """The norm of each plain tensor of one device: float64, shape (len(tensors),)."""
    numel = sum(tensor.numel() for tensor in tensors)
    if tensors[0].device.type != "cpu" or norm_type not in (1.0, 2.0) or numel <= NUMEL_OF_NO_HURRY:
        return _norms_in_float64(tensors, norm_type)
    small = [index for index, tensor in enumerate(tensors) if norm_type == 2.0 and _is_small(tensor)]
    norms = torch.empty(len(tensors), dtype=torch.float64)
    if small:
        norms[small] = torch.stack(torch._foreach_norm([tensors[index] for index in small], norm_type)).double()
    for index in set(range(len(tensors))).difference(small):
        norms[index] = _norm_from_float32_sums([tensors[index]], norm_type)
    for index, norm in enumerate(norms.tolist()):
        if not _is_trusted(norm, tensors[index].numel(), norm_type):
            norms[index] = _norm_in_float64(tensors[index], norm_type)
    return norms


def _norms_in_float64(tensors: list[Tensor], norm_type: float) -> Tensor:
    is_real = not any(tensor.is_complex() for tensor in tensors)
    if tensors[0].device.type != "cpu" and norm_type in (1.0, 2.0) and is_real:
        filled = [tensor if tensor.numel() else tensor.new_zeros(1) for tensor in tensors]
        return torch.stack(torch._foreach_norm(filled, norm_type, dtype=torch.float64))
    return torch.stack([_norm_in_float64(tensor, norm_type) for tensor in tensors])


def _is_trusted(norm: float, numel: int, norm_type: float) -> bool:
    """Whether a norm from float32 sums is right, by its own value."""
    return math.isfinite(norm) and (norm_type == 1.0 or norm * norm >= numel * SMALLEST_MEAN_SQUARE)


def _is_small(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and 0 < tensor.numel() <= NUMEL_IN_ONE_SUM


def _norm_from_float32_sums(tensors: list[Tensor], norm_type: float) -> float:
    if norm_type == 1.0:
        return float(torch.cat(_absolute_sums(tensors)).sum(dtype=torch.float64))
    return float(vector_norm(torch.cat(_row_norms(tensors)), dtype=torch.float64))


def _absolute_sums(tensors: list[Tensor]) -> list[Tensor]:
    """Sums of |x| over pieces that fit into a cache; 1-D, float32 or float64. torch adds them up in a tree."""
    sums: list[Tensor] = []
    for tensor in tensors:
        if tensor.dtype is torch.float64 or tensor.is_complex():
            sums.append(_norm_in_float64(tensor, 1.0).view(1))
        else:
            sums.extend(chunk.float().abs().sum().view(1) for chunk in tensor.reshape(-1).split(CHUNK_NUMEL))
    return sums


def _row_norms(tensors: list[Tensor]) -> list[Tensor]:
    """2-norms of pieces, each short enough for a float32 sum; 1-D, float32 or float64."""
    small: list[Tensor] = []
    large: list[Tensor] = []
    norms: list[Tensor] = []
    for tensor in tensors:
        numel = tensor.numel()
        is_float32 = tensor.dtype is torch.float32
        if is_float32 and 0 < numel <= NUMEL_IN_ONE_SUM:
            small.append(tensor)
        elif is_float32 and tensor.is_contiguous():
            large.append(tensor)
        elif tensor.dtype in (torch.bfloat16, torch.float16) and numel:
            # Squares of few bits round the same way again and again: short rows, however short the tensor is.
            norms.extend(row_norms([chunk.float()]) for chunk in tensor.reshape(-1).split(CHUNK_NUMEL))
        else:
            norms.append(_norm_in_float64(tensor, 2.0).view(1))
    if large:
        norms.append(row_norms(large))
    if small:
        norms.append(torch.stack(torch._foreach_norm(small, 2.0)))
    return norms
