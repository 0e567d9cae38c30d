"""Norms of plain tensors that lie on one device of one process, in float64.

Squares of float64 numbers may leave float64's range. They, and powers above the fourth, are taken of numbers that have
been divided by the largest of them. A complex number counts by its modulus.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.linalg import vector_norm

from tightgrad.clip import fast_cpu

LARGEST_PLAIN_POWER = 4.0  # |x|^4 of any float32 number fits into float64
WIDE = (torch.float64, torch.complex128)
"""Of these the powers may not fit into float64."""


def local_norm(tensors: list[Tensor], norm_type: float) -> Tensor:
    """Return the norm over plain tensors, at least one, of one device and dtype: a float64 scalar there."""
    if fast_cpu.fits(tensors, norm_type):
        norm = fast_cpu.norm(tensors, norm_type)
        if not norm.isnan():
            return norm
    return combined(norms_in_float64(tensors, norm_type), norm_type, tensors[0].dtype)


def local_norms(tensors: list[Tensor], norm_type: float) -> Tensor:
    """Return the norm of each such tensor: float64, shape (len(tensors),)."""
    if not fast_cpu.fits(tensors, norm_type):
        return norms_in_float64(tensors, norm_type)
    norms = fast_cpu.norms(tensors, norm_type)
    for index in norms.isnan().nonzero().flatten().tolist():
        norms[index] = _norm_in_float64(tensors[index], norm_type)
    return norms


def widest(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return float64 if any tensor has float64's range, else float32."""
    dtypes = {tensor.dtype for tensor in tensors}
    return torch.float32 if dtypes.isdisjoint(WIDE) else torch.float64


def powers_fit(norm_type: float, dtype: torch.dtype) -> bool:
    """Tell whether |x|^p of any numbers of `dtype`, and sums of them, fit into float64."""
    return norm_type in (0.0, 1.0) or (norm_type <= LARGEST_PLAIN_POWER and dtype not in WIDE)


def norms_in_float64(tensors: list[Tensor], norm_type: float) -> Tensor:
    """Return the norm of each of plain tensors, at least one, of one device and dtype, from float64 sums: 1-D."""
    are_narrow = not tensors[0].is_complex() and powers_fit(norm_type, tensors[0].dtype)
    if norm_type in (1.0, 2.0) and are_narrow:
        filled = [tensor if tensor.numel() else tensor.new_zeros(1) for tensor in tensors]
        return torch.stack(torch._foreach_norm(filled, norm_type, dtype=torch.float64))
    return torch.stack([_norm_in_float64(tensor, norm_type) for tensor in tensors])


def combined(norms: Tensor, norm_type: float, dtype: torch.dtype) -> Tensor:
    """Return the norm of the norms (float64, 1-D) of tensors of `dtype`."""
    if norm_type == 0:
        return norms.sum()
    if math.isinf(norm_type) or powers_fit(norm_type, dtype):
        norm: Tensor = vector_norm(norms, norm_type)
        return norm
    return scaled_norm(norms, norm_type)


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
        return scaled_norm(values, norm_type)
    norm: Tensor = vector_norm(values, norm_type, dtype=torch.float64)
    return norm


def _reals(values: Tensor, norm_type: float) -> Tensor:
    """Real numbers of the same norm: real and imaginary parts for p = 2, else the moduli."""
    values = values.conj() if values.is_conj() else values
    reals: Tensor = torch.view_as_real(values) if norm_type == 2.0 else values.to(torch.complex128).abs()
    return reals


def scaled_norm(values: Tensor, norm_type: float, dims: tuple[int, ...] | None = None) -> Tensor:
    """Return the norm of real values, over `dims` (kept, with length 1) or all, in float64. They are divided by the
    largest first, so that no power leaves float64's range.
    """
    largest = vector_norm(values, math.inf, dims, keepdim=dims is not None).double()
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    scaled: Tensor = scale * vector_norm(values.double() / scale, norm_type, dims, keepdim=dims is not None)
    return torch.where(largest.isfinite(), scaled, largest)
