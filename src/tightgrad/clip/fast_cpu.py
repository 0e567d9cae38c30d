"""Norms of large tensors on the CPU from float32 sums, 40 times faster there than torch's float64 sums.

torch adds up in a few lanes, so that the rounding error of a sum grows with its length: the norm of 2.5 million equal
numbers is off by 0.2 %. Large tensors are therefore cut into rows, all taken in one call that several threads share,
and the rows are added up in float64.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.linalg import vector_norm

NUMEL_IN_ONE_SUM = 32768
"""Of more equal numbers a sum is off by 2e-5 and more; of random ones by 1e-7."""
FEW_TENSORS = 64
"""Of so many each may cost a call of its own for exactness."""
NUMEL_OF_NO_HURRY = 65536
"""Up to here float64 sums take less than a millisecond."""
CHUNK_NUMEL = 2**18
CACHED_NUMEL = 2**22
"""Float32 numbers that a CPU's last cache surely holds: 16 MiB."""
SHORTEST_ROW, LONGEST_ROW = 256, 1024
SMALLEST_MEAN_SQUARE = 2.0**-126 * 1e8
"""A float32 square below 2^-126 loses at most that much; next to this mean square the loss is below 1e-8."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(tensors: Sequence[Tensor], norm_type: float) -> bool:
    """Tell whether plain tensors of one device and dtype are such that `norm` and `norms` are worth asking."""
    first = tensors[0]
    is_known = norm_type in (1.0, 2.0) and first.is_cpu and first.dtype in DTYPES
    return is_known and sum(map(Tensor.numel, tensors)) > NUMEL_OF_NO_HURRY


@torch.no_grad()
def norm(tensors: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm over all tensors, NaN where float32 sums may not be right: a float64 scalar."""
    small, large = _by_size(tensors, norm_type)
    pieces = [_norms_of_pieces(tensors[index], norm_type) for index in large]
    if small:
        pieces.append(torch.stack(torch._foreach_norm([tensors[index] for index in small], norm_type)))
    total = vector_norm(torch.cat(pieces), norm_type, dtype=torch.float64)
    return torch.where(_is_right(total, sum(map(Tensor.numel, tensors))), total, torch.nan)


@torch.no_grad()
def norms(tensors: Sequence[Tensor], norm_type: float) -> Tensor:
    """Return the norm of each tensor, NaN where float32 sums may not be right: float64, shape (len(tensors),)."""
    small, large = _by_size(tensors, norm_type)
    found = torch.zeros(len(tensors), dtype=torch.float64, device="cpu")
    if small:
        found[small] = torch.stack(torch._foreach_norm([tensors[index] for index in small], norm_type)).double()
    if large:
        pieces = [_norms_of_pieces(tensors[index], norm_type) for index in large]
        found[large] = torch.stack(torch._foreach_norm(pieces, norm_type, torch.float64))
    is_right = _is_right(found, torch.tensor([tensor.numel() for tensor in tensors], device="cpu"))
    for index in is_right.logical_not().nonzero().flatten().tolist():
        low, high = tensors[index].aminmax()
        is_right[index] = bool(low == 0) and bool(high == 0)
    return torch.where(is_right, found, torch.nan)


def _by_size(tensors: Sequence[Tensor], norm_type: float) -> tuple[list[int], list[int]]:
    """Indices of those whose squares one sum adds up well enough, and of those that need several. Squares of numbers
    of few bits round the same way again and again, and torch's 1-norm adds up in one lane.
    """
    longest = LONGEST_ROW if len(tensors) <= FEW_TENSORS else NUMEL_IN_ONE_SUM
    if norm_type != 2.0 or tensors[0].dtype is not torch.float32:
        longest = 0
    small = [index for index, tensor in enumerate(tensors) if tensor.numel() <= longest]
    return small, [index for index, tensor in enumerate(tensors) if tensor.numel() > longest]


def _is_right(norms: Tensor, numels: Tensor | int) -> Tensor:
    """Whether no square has overflowed, and no more than a small part of the sum was lost."""
    return norms.isfinite() & (norms.square() >= numels * SMALLEST_MEAN_SQUARE)


def _norms_of_pieces(tensor: Tensor, norm_type: float) -> Tensor:
    """One dimension, float32."""
    if not tensor.is_contiguous():  # a view, if only the order of its dimensions is another than in memory
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    if norm_type == 2.0 and tensor.dtype is torch.float32:
        return _row_norms(tensor)
    chunks = tensor.reshape(-1).split(CHUNK_NUMEL)
    if norm_type == 1.0:
        return torch.stack([chunk.float().abs().sum() for chunk in chunks])
    return torch.cat([_row_norms(chunk.float()) for chunk in chunks])


def _row_norms(tensor: Tensor) -> Tensor:
    numel = tensor.numel()
    width = row_numel(numel)
    if numel % width == 0:
        of_rows: Tensor = vector_norm(tensor.reshape(-1, width), 2.0, -1)
        return of_rows
    body, rest = tensor.reshape(-1).split([numel - numel % width, numel % width])
    return torch.cat([_row_norms(body), vector_norm(rest, 2.0).view(1)])


@cache
def row_numel(numel: int) -> int:
    """Return the longest row that fits into `numel` without a rest, since that costs a call."""
    fitting = (width for width in range(LONGEST_ROW, SHORTEST_ROW - 1, -1) if numel % width == 0)
    return next(fitting, LONGEST_ROW)


def still_cached_first(tensors: list[Tensor]) -> list[Tensor]:
    """Put first what a norm over all has read last: multiplying then saves 3 to 5 % of norm and multiplication."""
    first, numel = len(tensors), 0
    while first and numel < CACHED_NUMEL:
        first -= 1
        numel += tensors[first].numel()
    return tensors[first:] + tensors[:first]
