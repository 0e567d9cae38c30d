"""The sum of squares by a BLAS's dot product of short rows: the inner loop of the norm in one thread.

`numpy.vecdot` calls the BLAS once a row, without Python between them. OpenBLAS adds up in several registers at once, so
that a row loses fewer digits than in torch's sum, and in the same order wherever the row lies in memory. Other BLAS do
not promise the latter, which a resumed run needs to be bit-identical. Few different functions are called, since after
a backward each costs more than the numbers do.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from tightgrad.clip.rows import LONGEST_ROW, row_numel

LONG_ROW = 2048
"""OpenBLAS would share a row of 10,000 numbers among threads."""
NUMEL_OF_LONG_ROWS = 2**18
"""From here on a call for the rest costs nothing next to the rows."""


@cache
def has_steady_dot() -> bool:
    """Whether numpy has `vecdot` (from 2.0 on) and calls OpenBLAS, as its packages for Linux and Windows do."""
    built_with = np.show_config(mode="dicts").get("Build Dependencies", {})
    return hasattr(np, "vecdot") and "openblas" in str(built_with.get("blas", {}).get("name"))


class _Shared:
    """Lets numpy read a tensor where it lies. After `Tensor.numpy()` torch would not resize the storage any more."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **unused: Any) -> Any:
        return to_dlpack(self._tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def sum_of_squares(tensors: Sequence[Tensor]) -> float:
    """The sum over all elements of all tensors. Only where `has_steady_dot()`.

    Args:
        tensors: contiguous float32 tensors on the CPU.

    Returns:
        Float32 sums of rows, added up in float64. inf where a row overflows; squares below 1e-38 lose digits.
    """
    rows = []
    for tensor in tensors:
        values = np.from_dlpack(_Shared(tensor))
        shape, numel = values.shape, values.size
        if numel <= LONG_ROW:
            values = values.reshape(1, numel)
        elif numel > NUMEL_OF_LONG_ROWS or len(shape) != 2 or not LONGEST_ROW // 2 <= shape[1] <= LONG_ROW:
            width = LONG_ROW if numel > NUMEL_OF_LONG_ROWS else row_numel(numel)
            if rest := numel % width:
                values = values.reshape(numel)
                rows.append(values[-rest:].reshape(1, rest))
                values = values[:-rest]
            values = values.reshape(-1, width)
        rows.append(values)
    if not rows:
        return 0.0
    with np.errstate(all="ignore"):
        sums = np.concatenate(list(map(np.vecdot, rows, rows)))
        return float(np.add.reduce(sums, dtype=np.float64))
