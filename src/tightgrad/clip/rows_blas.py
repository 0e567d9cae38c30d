"""2-norms of short rows by a BLAS's dot product, in one thread: the faster inner loop of the norm.

`numpy.vecdot` calls the BLAS once a row, without Python between them. OpenBLAS adds up in several registers at once, so
that a row loses fewer digits than in torch's sum, and in the same order wherever the row lies in memory. Other BLAS do
not promise the latter, which a resumed run needs to be bit-identical.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from tightgrad.clip.row_numel import LONGEST_ROW, row_numel

LONG_ROW = 2048
"""OpenBLAS would share a row of 10,000 numbers among threads."""
NUMEL_OF_LONG_ROWS = 2**18
"""From here on a call for the rest costs nothing next to the rows."""


@cache
def has_steady_dot() -> bool:
    """Whether numpy has `vecdot` (from 2.0 on) and calls OpenBLAS, as its packages for Linux and Windows do."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return hasattr(np, "vecdot") and "openblas" in str(blas.get("name"))


def _row_norms(tensors: Sequence[Tensor]) -> Tensor:
    rows = []
    for tensor in tensors:
        values = tensor.numpy()
        shape, numel = values.shape, values.size
        if numel > NUMEL_OF_LONG_ROWS or len(shape) != 2 or not LONGEST_ROW // 2 <= shape[1] <= LONG_ROW:
            width = LONG_ROW if numel > NUMEL_OF_LONG_ROWS else row_numel(numel)
            if rest := numel % width:
                values = values.reshape(-1)
                rows.append(values[-rest:].reshape(1, rest))
                values = values[:-rest]
            values = values.reshape(-1, width)
        rows.append(values)
    with np.errstate(all="ignore"):
        squares = np.concatenate(list(map(np.vecdot, rows, rows)))
    return torch.from_numpy(squares).sqrt_()


# An operator of torch's, so that what counts or traces operators sees the reading.
_LIBRARY = torch.library.Library("tightgrad", "DEF")
_LIBRARY.define("blas_row_norms(Tensor[] tensors) -> Tensor")
_LIBRARY.impl("blas_row_norms", _row_norms, "CPU")


def blas_row_norms(tensors: Sequence[Tensor]) -> Tensor:
    """The norms of rows that make up all tensors: float32, one dimension. Only where `has_steady_dot()`.

    Args:
        tensors: contiguous float32 tensors on the CPU.

    Returns:
        inf where the squares of a row overflow. Squares below 1e-38 lose digits.
    """
    if not tensors:
        return torch.empty(0)
    plain = [tensor.detach() if tensor.requires_grad else tensor for tensor in tensors]
    norms: Tensor = torch.ops.tightgrad.blas_row_norms(plain)
    return norms
