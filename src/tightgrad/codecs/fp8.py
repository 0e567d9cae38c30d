"""8-bit floating point: C(x) = s fp8(x / s), s = max|x| / (largest fp8 number) over each block.

    Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv:2209.05433.

Sent as uint8, since gloo knows no 8-bit floats. Departs from the paper: one scale a block, not one a tensor.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.blocks_together import BlocksTogether
from tightgrad.codecs.bits.blockwise import largest_sizes, per_block
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_integer

_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
# Half a unit in the last place, and half the distance of numbers below the smallest normal one.
_RELATIVE_ERROR = {"e4m3": 2.0**-4, "e5m2": 2.0**-3}
_SMALLEST_HALF = {"e4m3": 2.0**-10, "e5m2": 2.0**-17}


@dataclass(frozen=True)
class FP8(BlocksTogether):
    """Sends each element as an 8-bit float, with one float32 scale a block.

    Args:
        format: "e4m3" (4 significant bits, 2^17 from smallest to largest) or "e5m2" (3 bits, 2^32).
        block_size: elements that share a scale, at least 8.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.FP8("e4m3")
        >>> x = torch.tensor([448.0, 3.3, -0.1])
        >>> payload = codec.encode(x, GradSpec.of("weight", x), torch.Generator())
        >>> payload.nbytes, codec.decode(payload).tolist()
        (7, [448.0, 3.25, -0.1015625])
    """

    format: str = "e4m3"
    block_size: int = 256

    card: ClassVar[MethodCard] = MethodCard(
        id="fp8",
        kind="codec",
        summary="8-bit floats with one scale a block",
        scope="block",
        contraction="1 - 2^-8 for e4m3, 1 - 2^-6 for e5m2, less what underflows in a block",
        reducer="two_shot",
        reference="Micikevicius et al. 2022, arXiv:2209.05433",
        use_when="entries of a block differ a lot in size, since small ones keep their digits",
        avoid_when="entries of a block are alike in size; 8-bit integers err less",
    )

    def __post_init__(self) -> None:
        check_choice("format", self.format, _DTYPES)
        check_integer("block_size", self.block_size, low=8)

    @property
    def code_bits(self) -> int:
        """Return the number of bits of one float: eight."""
        return 8

    def contraction(self, numel: int) -> float:
        """Return the delta from half a unit in the last place and the error below the smallest normal number."""
        underflow = _SMALLEST_HALF[self.format] / torch.finfo(_DTYPES[self.format]).max
        return 1.0 - _RELATIVE_ERROR[self.format] ** 2 - min(numel, self.block_size) * underflow**2

    def encode_blocks(self, blocks: Tensor, scratch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scale each block to the range of the format and round to nearest even."""
        largest = torch.finfo(_DTYPES[self.format]).max
        scales = largest_sizes(blocks, scratch).div_(largest)
        scaled = per_block(blocks, scales, scratch).clamp_(-largest, largest)
        return scaled.to(_DTYPES[self.format]).view(torch.uint8), scales

    def decode_blocks_(self, out: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Widen the floats and multiply them by the scales."""
        if out.device.type == "cpu" and self.format == "e4m3":
            # A table of all 256 numbers: five times faster than torch's conversion.
            table = torch.arange(256, dtype=torch.uint8, device="cpu").view(torch.float8_e4m3fn).float()
            torch.index_select(table, 0, codes.view(-1).to(torch.int32), out=out.view(-1))
        else:
            out.copy_(codes.view(_DTYPES[self.format]))
        out.mul_(scales[:, None])
