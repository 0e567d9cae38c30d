"""The norm of plain tensors that lie on one device of one process.

Float32 on the CPU takes two steps. First, sums of powers are taken in float32 over rows of up to 2048 numbers, which
is as fast as `torch._foreach_norm`, and the rows are added up in float64. (One float32 sum over a large tensor
is not right: the norm of 2.5 million equal numbers is off by 0.2 %.) Then, only if the result says that squares
may have overflowed or lost digits, all is done again in float64, where they cannot. On other devices a look at the
result would wait for the device, so sums are in float64 from the start.

Squares of float64 numbers may leave float64's range. They, and powers above the fourth, are taken of numbers that have
been divided by the largest of them. A complex number counts by its modulus.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.linalg import vector_norm

from tightgrad.clip import blas
from tightgrad.clip.rows import row_norms

NUMEL_IN_ONE_SUM = 32768
FEW_TENSORS = 64
"""So many small ones cost less in one call with all others than in one more operator."""
NUMEL_OF_NO_HURRY = 65536  # float64 from the start
CHUNK_NUMEL = 2**18
# A float32 square below 2^-126 loses digits, at most that much each. From this mean square on, 1e8 times larger, the
# loss is below 1e-8 of the sum.
SMALLEST_MEAN_SQUARE = 2.0**-126 * 1e8
LARGEST_PLAIN_POWER = 4.0  # |x|^4 of any float32 number fits into float64
WIDE = (torch.float64, torch.complex128)
"""Of these the powers may not fit into float64."""


def local_norm(tensors: list[Tensor], norm_type: float) -> Tensor:
    """Return the norm over plain tensors, at least one, of one device: a float64 scalar there."""
    if norm_type in (1.0, 2.0) and tensors[0].is_cpu:
        return torch.tensor(host_norm(tensors, norm_type), dtype=torch.float64, device="cpu")
    return combined(_norms_in_float64(tensors, norm_type), norm_type, widest(tensors))


def widest(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return float64 if any tensor has float64's range, else float32."""
    dtypes = {tensor.dtype for tensor in tensors}
    return torch.float32 if dtypes.isdisjoint(WIDE) else torch.float64


def powers_fit(norm_type: float, dtype: torch.dtype) -> bool:
    """Tell whether |x|^p of any numbers of `dtype`, and sums of them, fit into float64."""
    return norm_type in (0.0, 1.0) or (norm_type <= LARGEST_PLAIN_POWER and dtype not in WIDE)


def host_norm(tensors: list[Tensor], norm_type: float) -> float:
    """Return the norm over plain tensors on the CPU, at least one; `norm_type` is 1 or 2."""
    numel = sum(map(Tensor.numel, tensors))
    if numel > NUMEL_OF_NO_HURRY:
        norm = _norm_from_float32_sums(tensors, norm_type)
        if _is_trusted(norm, numel, norm_type):
            return norm
    return float(combined(_norms_in_float64(tensors, norm_type), norm_type, widest(tensors)))


def local_norms(tensors: list[Tensor], norm_type: float) -> Tensor:
    """Return the norm of each plain tensor of one device: float64, shape (len(tensors),)."""
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
    are_narrow = not any(tensor.is_complex() for tensor in tensors) and powers_fit(norm_type, widest(tensors))
    if tensors[0].device.type != "cpu" and norm_type in (1.0, 2.0) and are_narrow:
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
    if torch.get_num_threads() > 1 or not blas.has_steady_dot():
        return float(vector_norm(torch.cat(_row_norms(tensors)), dtype=torch.float64))
    least = 0 if sum(map(_is_small, tensors)) <= FEW_TENSORS else NUMEL_IN_ONE_SUM + 1
    dense: list[Tensor] = []
    others: list[Tensor] = []
    for tensor in tensors:
        is_dense = tensor.dtype is torch.float32 and tensor.numel() >= least and tensor.is_contiguous()
        (dense if is_dense else others).append(tensor)
    power = blas.sum_of_squares(dense)
    if others:
        power += float(torch.cat(_row_norms(others)).double().square().sum())
    return math.sqrt(power)


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


def combined(norms: Tensor, norm_type: float, dtype: torch.dtype) -> Tensor:
    """Return the norm of the norms (float64, 1-D) of tensors of `dtype`."""
    if norm_type == 0:
        return norms.sum()
    if math.isinf(norm_type) or powers_fit(norm_type, dtype):
        norm: Tensor = vector_norm(norms, norm_type)
        return norm
    return _scaled_norm(norms, norm_type)


def _norm_in_float64(values: Tensor, norm_type: float) -> Tensor:
    if values.is_complex():
        values = _reals(values, norm_type)
    if norm_type == 0:
        return torch.count_nonzero(values).double()
    if not values.numel():
        return values.new_zeros((), dtype=torch.float64)
    if math.isinf(norm_type):
        largest: Tensor = vector_norm(values, norm_type).double()
        return largest
    if not powers_fit(norm_type, values.dtype):
        return _scaled_norm(values, norm_type)
    norm: Tensor = vector_norm(values, norm_type, dtype=torch.float64)
    return norm


def _reals(values: Tensor, norm_type: float) -> Tensor:
    """Real numbers of the same norm: real and imaginary parts for p = 2, else the moduli."""
    values = values.conj() if values.is_conj() else values
    reals: Tensor = torch.view_as_real(values) if norm_type == 2.0 else values.to(torch.complex128).abs()
    return reals


def _scaled_norm(values: Tensor, norm_type: float) -> Tensor:
    """Of values divided by their largest, so that no power leaves float64's range."""
    largest = vector_norm(values, math.inf).double()
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    scaled: Tensor = scale * vector_norm(values.double() / scale, norm_type)
    return torch.where(largest.isfinite(), scaled, largest)
