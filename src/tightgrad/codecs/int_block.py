"""Block-wise integers: q = round(x / s), s = max|x| / (2^(bits-1) - 1) over each block; C(x) = s q.

    Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861; Alistarh et al. 2017,
    QSGD, arXiv:1610.02132 (stochastic rounding).

Departs from Dettmers: linear levels instead of dynamic ones, so that one multiplication decodes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.blocks_together import BlocksTogether
from tightgrad.codecs.bits.blockwise import largest_sizes, may_be_inexact, per_block, small_integers
from tightgrad.codecs.bits.pieces import uniform
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_integer

ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class IntBlock(BlocksTogether):
    """Sends each element as a signed integer of few bits, with one float32 scale a block.

    Args:
        bits: 8, 4 or 2 bits an element.
        block_size: elements that share a scale, at least 8.
        rounding: "nearest" (biased, smallest error) or "stochastic" (unbiased).

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.IntBlock(bits=4, block_size=8)
        >>> x = torch.tensor([7.0, 3.2, -1.4, 0.3])
        >>> payload = codec.encode(x, GradSpec.of("weight", x), torch.Generator())
        >>> payload.nbytes, codec.decode(payload).tolist()
        (6, [7.0, 3.0, -1.0, 0.0])
    """

    bits: int = 8
    block_size: int = 256
    rounding: str = "nearest"

    card: ClassVar[MethodCard] = MethodCard(
        id="int_block",
        kind="codec",
        summary="8-, 4- or 2-bit integers with one scale a block",
        scope="block",
        contraction="1 - block_size / (4 (2^(bits-1) - 1)^2) where that is positive, nearest rounding",
        reducer="two_shot",
        reference="Dettmers et al. 2021, arXiv:2110.02861; Alistarh et al. 2017, arXiv:1610.02132",
        use_when="the link is up to about eight times too slow",
        avoid_when="the link is slower than that; sparsify instead",
    )

    def __post_init__(self) -> None:
        check_choice("bits", self.bits, (8, 4, 2))
        check_integer("block_size", self.block_size, low=8)
        check_choice("rounding", self.rounding, ROUNDINGS)

    @property
    def levels(self) -> int:
        """Return the largest integer used: 127, 7 or 1."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def unbiased(self) -> bool:
        """Tell whether rounding is stochastic, which makes it unbiased."""
        return self.rounding == "stochastic"

    def contraction(self, numel: int) -> float:
        """Return the delta from an error of half a level an element; with stochastic rounding, of a whole level."""
        half_levels = 2 * self.levels if self.rounding == "nearest" else self.levels
        return max(0.0, 1.0 - min(numel, self.block_size) / half_levels**2)

    @property
    def code_bits(self) -> int:
        """Return the number of bits of one integer, as set."""
        return self.bits

    def encode_blocks(self, blocks: Tensor, scratch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scale each block to the integer range and round."""
        scales = largest_sizes(blocks, scratch).div_(self.levels)
        scaled = per_block(blocks, scales, scratch)
        if self.rounding == "stochastic":
            scaled.add_(uniform(scaled.numel(), generator, blocks.device).view(scaled.shape)).floor_()
        else:
            scaled.round_()
        if self.rounding == "stochastic" or may_be_inexact(scales):
            scaled.clamp_(-self.levels, self.levels)
        codes = small_integers(scaled)
        return codes if self.bits == 8 else codes.add_(self.levels), scales

    def decode_blocks_(self, out: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Multiply the integers by the scales."""
        if self.bits == 8:
            out.copy_(codes.view(torch.int8))
        else:
            out.copy_(codes).sub_(self.levels)
        out.mul_(scales[:, None])
