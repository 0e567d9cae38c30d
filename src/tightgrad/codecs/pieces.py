"""Long tensors piece by piece, so that what one step writes is still in the cache when the next one reads it.

On the CPU this makes a chain of plain torch operations as fast as one compiled loop, without a compiler. On other
devices a tensor is one piece.
"""

import math
from collections.abc import Iterator

import torch

PIECE_NUMEL = 2**18


def pieces(numel: int, multiple: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces of `numel` elements; every start is a multiple of `multiple`."""
    step = max(1, PIECE_NUMEL // multiple) * multiple if device.type == "cpu" else max(1, numel)
    for start in range(0, numel, step):
        yield start, min(numel, start + step)


def common_multiple(*numbers: int) -> int:
    """The least common multiple."""
    return math.lcm(*numbers)
