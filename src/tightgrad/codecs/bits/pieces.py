"""Long tensors piece by piece, so that what one step writes is still in the cache when the next one reads it.

On the CPU this makes a chain of plain torch operations as fast as one compiled loop, without a compiler. On other
devices a tensor is one piece.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tightgrad.core.types import GradSpec

PIECE_NUMEL = 2**19
SHORT_NUMEL = 2**17


def pieces(numel: int, multiple: int, device: torch.device, *, numel_each: int = 1) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive pieces of `numel` rows of `numel_each` elements, starting at multiples of
    `multiple`.
    """
    rows = PIECE_NUMEL // numel_each
    step = max(1, rows // multiple) * multiple if device.type == "cpu" else max(1, numel)
    for start in range(0, numel, step):
        yield start, min(numel, start + step)


def are_short(specs: Sequence[GradSpec]) -> bool:
    """Tell whether tensors are so short on average that calling torch for each takes longer than the arithmetic."""
    if not specs or specs[0].device.type != "cpu":
        return bool(specs)
    return sum(spec.numel for spec in specs) <= len(specs) * SHORT_NUMEL


def uniform(numel: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw float32 numbers above 0 and below 1, odd multiples of 2^-17: a probability drawn with them is right to
    2^-17.

    On the CPU four numbers come from one random integer, since drawing takes most of the time.
    """
    if device.type != "cpu":
        lanes = torch.randint(2**16, (numel,), generator=generator, device=device)
        return lanes.float().add_(0.5).mul_(2.0**-16)
    draws = torch.empty(-(-numel // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:numel].float().add_(2**15 + 0.5).mul_(2.0**-16)
