"""2-norms of short rows: the inner loop of the norm of large float32 tensors on the CPU.

torch adds up in 16 lanes, so that the rounding error of a row grows with its length. One call for each tensor, and
one buffer for all results: as fast as `torch._foreach_norm`, and right. Several threads share the rows; one thread
is faster with a BLAS (`blas`).
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.linalg import vector_norm

SHORTEST_ROW, LONGEST_ROW = 256, 1024
NATURAL_NUMEL = 2**18
"""Smaller matrices with long rows are taken as they are: a view costs as much as it saves."""


def row_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norms of rows that make up all tensors: float32, one dimension.

    Args:
        tensors: contiguous float32 tensors on the CPU.

    Returns:
        inf where the squares of a row overflow. Squares below 1e-38 lose digits.
    """
    rows: list[Tensor] = []
    rests: list[Tensor] = []
    for tensor in tensors:
        if tensor.requires_grad:
            tensor = tensor.detach()
        numel = tensor.numel()
        if numel > NATURAL_NUMEL or tensor.dim() != 2 or not LONGEST_ROW // 2 <= tensor.size(1) <= LONGEST_ROW:
            width = row_numel(numel)
            if rest := numel % width:
                tensor = tensor.view(-1)
                rests.append(tensor[numel - rest :])
                tensor = tensor[: numel - rest]
            tensor = tensor.view(-1, width)
        rows.append(tensor)
    lengths = [*map(len, rows), len(rests)]
    norms = torch.empty(sum(lengths))
    *places, last = norms.split(lengths)
    for row, place in zip(rows, places, strict=True):
        vector_norm(row, 2.0, -1, out=place)
    if rests:
        torch.stack(torch._foreach_norm(rests, 2.0), out=last)
    return norms


@cache
def row_numel(numel: int) -> int:
    """Return the longest row that fits into `numel` without a rest, since that costs a call."""
    fitting = (width for width in range(LONGEST_ROW, SHORTEST_ROW - 1, -1) if numel % width == 0)
    return next(fitting, LONGEST_ROW)
