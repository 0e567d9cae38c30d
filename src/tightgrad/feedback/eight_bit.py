"""Residuals in 8 bits: integers with one float32 scale for each 256 of them.

    Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861.

Rounding to nearest would forget, step after step, whatever is below half a level, and small gradients would never add
up. So it rounds up or down by a hash of the value itself: without bias over values, and the same on every run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZE = 256
LEVELS = 127
_SCALE_NBYTES = 4


@dataclass(frozen=True)
class EightBit:
    """Holds scales, then integers, in one uint8 tensor."""

    def pack(self, values: Tensor) -> Tensor:
        """Pack float32 values of any shape into one uint8 tensor (n,)."""
        flat = values.reshape(-1)
        blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
        scales = blocks.abs().amax(dim=1) / LEVELS
        scaled = blocks / torch.where(scales > 0, scales, torch.inf)[:, None]
        integers = scaled.add_(_hash(blocks)).floor_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        return torch.cat([scales.view(torch.uint8), integers.view(-1)[: flat.numel()].view(torch.uint8)])

    def unpack(self, held: Tensor) -> Tensor:
        """Unpack the values to float32, in one dimension."""
        numel = self.numel(held)
        num_blocks = held.numel() - numel
        scales = held[:num_blocks].clone().view(torch.float32)
        integers = held[num_blocks:].view(torch.int8).float()
        padded = torch.nn.functional.pad(integers, (0, -numel % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
        return padded.mul_(scales[:, None]).view(-1)[:numel]

    def numel(self, held: Tensor) -> int:
        """Return how many values are held; -1 if `held` was not packed like this."""
        numel = held.numel() - _SCALE_NBYTES * -(-held.numel() // (BLOCK_SIZE + _SCALE_NBYTES))
        expected = numel + _SCALE_NBYTES * -(-numel // BLOCK_SIZE)
        return numel if held.dtype is torch.uint8 and held.dim() == 1 and expected == held.numel() else -1


def _hash(values: Tensor) -> Tensor:
    """A number in [0, 1) for each float32, that looks random and is not."""
    bits = values.contiguous().view(torch.int32)
    bits = (bits ^ (bits >> 15)) * -1640531535
    bits = (bits ^ (bits >> 13)) * -2048144789
    return ((bits >> 9) & 0x7FFFFF).float().mul_(2.0**-23)
