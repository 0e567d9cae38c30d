"""Sums of squares by numpy's dot product: the inner loop of the 2-norm on one CPU thread.

It adds up in more lanes than torch's norm, so that rows may be longer at the same rounding error, and it takes fewer
calls for each tensor: together, a norm that is as fast as `torch._foreach_norm` and right.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHORTEST_ROW, LONGEST_ROW = 256, 2048
_HAS_VECDOT = hasattr(np, "vecdot")  # since numpy 2.0


def takes_dot() -> bool:
    """Whether `sum_of_squares` is the way to go: with more threads torch's norm is faster."""
    return _HAS_VECDOT and torch.get_num_threads() == 1


def sum_of_squares(tensors: Iterable[Tensor]) -> float:
    """Sum of all squares: float32 within rows, float64 over rows.

    Args:
        tensors: contiguous float32 tensors on the CPU.

    Returns:
        inf if the squares of a row overflow. Squares below 1e-38 lose digits.
    """
    pieces: list[Any] = []
    for tensor in tensors:
        array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
        width = row_numel(array.size)
        if rest := array.size % width:
            array = array.reshape(-1)
            pieces.append(array[None, -rest:])
            array = array[:-rest]
        pieces.append(array.reshape(-1, width))
    squares = np.empty(sum(map(len, pieces)), np.float32)
    start = 0
    with np.errstate(all="ignore"):
        for rows in pieces:
            end = start + len(rows)
            np.vecdot(rows, rows, out=squares[start:end])
            start = end
    return float(squares.sum(dtype=np.float64))


@cache
def row_numel(numel: int) -> int:
    """The longest row that fits into `numel` without a rest, since that costs a call."""
    fitting = (width for width in range(LONGEST_ROW, SHORTEST_ROW - 1, -1) if numel % width == 0)
    return next(fitting, LONGEST_ROW)
