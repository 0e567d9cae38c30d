"""Natural compression: C(x_i) is sign(x_i) times one of the two powers of two next to |x_i|, drawn so that E C(x) = x.

    Horvath et al. 2019, Natural Compression for Distributed Deep Learning, arXiv:1905.10988.

The variance is at most 1/8 of the squared norm, whatever the size of the tensor. Departs from the paper: exponents
count from the largest of their block, so that sign and exponent take 8 bits instead of 9; entries more than 2^126 times
smaller than the largest are drawn as zero or 2^-126 of it, still without bias. Above 2^127 it rounds down.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.blockwise import BlockCodec
from tightgrad.codecs.bits.pieces import uniform
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer

_MANTISSA_BITS = 23
_LARGEST_EXPONENT = 254  # 255 is infinity
_NUM_EXPONENTS = 127  # 7 bits, without the zero


@dataclass(frozen=True)
class Natural(BlockCodec):
    """Sends the sign and the exponent of each element, rounded to a power of two without bias.

    Args:
        block_size: elements that share a largest exponent, at least 8.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.Natural()
        >>> x = torch.full((4096,), 3.0)
        >>> decoded = codec.decode(codec.encode(x, GradSpec.of("weight", x), torch.Generator().manual_seed(0)))
        >>> decoded.unique().tolist(), round(float(decoded.mean()), 1)
        ([2.0, 4.0], 3.0)
    """

    block_size: int = 2048

    card: ClassVar[MethodCard] = MethodCard(
        id="natural",
        kind="codec",
        summary="powers of two, drawn without bias, 8 bits",
        scope="block",
        unbiased=True,
        reducer="two_shot",
        reference="Horvath et al. 2019, arXiv:1905.10988",
        use_when="entries differ widely in size and there is no memory for error feedback",
        avoid_when="entries are alike in size; 8-bit integers err less",
    )

    def __post_init__(self) -> None:
        check_integer("block_size", self.block_size, low=8)

    @property
    def code_bits(self) -> int:
        """Return the number of bits of sign and exponent."""
        return 8

    def encode_blocks(self, blocks: Tensor, scratch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a power of two for each element: 128 for a minus, plus 0 for zero or 127 - (distance from the largest
        exponent).
        """
        bits = blocks.contiguous().view(torch.int32)
        draw = uniform(blocks.numel(), generator, blocks.device).mul_(2.0**_MANTISSA_BITS).to(torch.int32)
        # A float32's size is 2^exponent (1 + mantissa / 2^23): a mantissa that overflows when a random one is added
        # raises the exponent, with just the right probability.
        exponents = (
            draw.view(blocks.shape)
            .add_(bits & 0x7FFFFFFF)
            .bitwise_right_shift_(_MANTISSA_BITS)
            .clamp_(max=_LARGEST_EXPONENT)
        )
        top = exponents.amax(dim=1)
        codes = torch.where(exponents > 0, exponents - top[:, None] + _NUM_EXPONENTS, 0)
        if bool(((codes < 1) & (exponents > 0)).any()):
            codes = self._drawn_again(codes, exponents, generator)
        scales = (top << _MANTISSA_BITS).view(torch.float32)
        return (codes | ((bits < 0).to(torch.int32) << 7)).to(torch.uint8), scales

    def _drawn_again(self, codes: Tensor, exponents: Tensor, generator: torch.Generator) -> Tensor:
        """What lies below the smallest code becomes that code or zero, without bias."""
        draw = torch.rand(codes.shape, generator=generator, device=codes.device, dtype=torch.float64)
        raised = draw < torch.exp2((codes - 1).double())
        return torch.where((codes < 1) & (exponents > 0), raised.to(torch.int32), codes)

    def decode_blocks_(self, out: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Write the powers of two, relative to the block's largest."""
        codes = codes.to(torch.int32)
        exponents = codes & 0x7F
        # 2^(code - 127) as the bits of a float32; the lowest, 2^-126, is the smallest normal number.
        sizes = torch.where(exponents > 0, exponents << _MANTISSA_BITS, 0) | ((codes >> 7) << 31)
        out.copy_(sizes.view(torch.float32)).mul_(scales[:, None])
