"""The sum of squares by a BLAS's dot product of short rows: the inner loop of the norm in one thread.

`numpy.vecdot` calls the BLAS once a row, without Python between them. OpenBLAS adds up in several registers at once, so
that a row loses fewer digits than in torch's sum, and in the same order wherever the row lies in memory. Other BLAS do
not promise the latter, which a resumed run needs to be bit-identical. Few different functions are called, since after
a backward each costs more than the numbers do.
"""

from collections.abc import Sequence
from contextvars import Context, copy_context
from ctypes import Array, c_float
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from tightgrad.clip.rows import row_numel

LONG_ROW = 2048
"""OpenBLAS would share a row of 10,000 numbers among threads."""
NUMEL_OF_LONG_ROWS = 2**18
"""From here on a call for the rest costs nothing next to the rows."""
ITEMSIZE = 4
FEW_ROWS = 4096
"""So many are added up as plain numbers: numpy's own sum takes 0.4 ms and more when it is not in the cache."""

Floats: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"


@cache
def has_steady_dot() -> bool:
    """Tell whether numpy has `vecdot` (from 2.0 on) and calls OpenBLAS, as its packages for Linux and Windows do."""
    built_with = np.show_config(mode="dicts").get("Build Dependencies", {})
    return hasattr(np, "vecdot") and "openblas" in str(built_with.get("blas", {}).get("name"))


def sum_of_squares(tensors: Sequence[Tensor]) -> float:
    """Sum the squares of all elements of all tensors. Only where `has_steady_dot()`.

    Args:
        tensors: contiguous float32 tensors on the CPU.

    Returns:
        Float32 sums of rows, added up in float64. inf where a row overflows; squares below 1e-38 lose digits.
    """
    rows: list[Floats] = []
    for tensor in tensors:
        address = tensor.data_ptr()
        if not address:  # nothing, or zeros without memory
            continue
        numel = tensor.numel()
        shape, rest, kind = _cut(numel)
        # Not `Tensor.numpy()`, after which torch would refuse to resize the storage for ever.
        memory: Any = kind.from_address(address)
        rows.append(np.ndarray(shape, np.float32, memory))
        if rest:
            rows.append(np.ndarray((1, rest), np.float32, memory, (numel - rest) * ITEMSIZE))
    return _quiet().copy().run(_added_up, rows) if rows else 0.0


def _added_up(rows: list[Floats]) -> float:
    sums = list(map(np.vecdot, rows, rows))
    if sum(map(len, sums)) <= FEW_ROWS:
        return float(sum(sum(row_sums.tolist()) for row_sums in sums))
    return float(np.add.reduce(np.concatenate(sums), dtype=np.float64))


@cache
def _quiet() -> Context:
    """A context in which numpy does not warn of overflow. `np.errstate` takes 0.1 to 0.3 ms after a backward."""
    context = copy_context()
    context.run(np.seterr, all="ignore")
    return context


@cache
def _cut(numel: int) -> tuple[tuple[int, int], int, type[Array[c_float]]]:
    """How a tensor is cut: number and length of its rows, what is left over, and the memory of all."""
    if numel <= LONG_ROW:
        width = numel
    elif numel > NUMEL_OF_LONG_ROWS:
        width = LONG_ROW
    else:
        width = row_numel(numel)
    return (numel // width, width), numel % width, c_float * numel
