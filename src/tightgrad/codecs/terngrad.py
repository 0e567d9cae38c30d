"""TernGrad: C(x)_i = s sign(x_i) b_i, where s = max|x| over each block and b_i is 1 with probability |x_i| / s.

    Wen et al. 2017, TernGrad, arXiv:1705.07878.

1.6 bits an element: five ternary digits a byte. Departs from the paper: one scale a block, not one a layer, and its
clipping of the gradient at 2.5 standard deviations is off unless asked for, since it makes the codec biased.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.blockwise import BlockCodec, largest_sizes, per_block, small_integers
from tightgrad.codecs.bits.packing import pack_base3, unpack_base3
from tightgrad.codecs.bits.pieces import uniform
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer, check_number


@dataclass(frozen=True)
class TernGrad(BlockCodec):
    """Sends -s, 0 or s for each element, drawn without bias; s is the largest |x| of its block.

    Args:
        block_size: elements that share a scale, at least 8.
        clip_deviations: entries beyond this many standard deviations of their block are cut first (the paper: 2.5);
            None cuts nothing and keeps the codec unbiased.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.TernGrad()
        >>> x = torch.tensor([4.0, -2.0, 0.0, 2.0, -4.0])
        >>> payload = codec.encode(x, GradSpec.of("weight", x), torch.Generator().manual_seed(0))
        >>> payload.nbytes, codec.decode(payload).tolist()
        (5, [4.0, -4.0, 0.0, 0.0, -4.0])
    """

    block_size: int = 2048
    clip_deviations: float | None = None
    packed_together: ClassVar[int] = 5

    card: ClassVar[MethodCard] = MethodCard(
        id="terngrad",
        kind="codec",
        summary="-s, 0 or s for each element, drawn without bias, 1.6 bits",
        scope="block",
        unbiased=True,
        reducer="two_shot",
        reference="Wen et al. 2017, arXiv:1705.07878",
        use_when="you need 20 times fewer bytes without error feedback",
        avoid_when="there is error feedback: its variance is larger than the gradient, so the two do not combine",
    )

    def __post_init__(self) -> None:
        check_integer("block_size", self.block_size, low=8)
        if self.clip_deviations is not None:
            check_number("clip_deviations", self.clip_deviations, above=0.0)

    @property
    def unbiased(self) -> bool:
        """Tell whether nothing is clipped, which keeps the codec unbiased."""
        return self.clip_deviations is None

    @property
    def code_bits(self) -> int:
        """Return the number of bits of one digit before packing: two."""
        return 2

    def code_nbytes(self, numel: int) -> int:
        """Return the bytes of `numel` digits, five in each byte."""
        return -(-numel // 5)

    def pack(self, codes: Tensor) -> Tensor:
        """Pack digits into bytes, five in each."""
        return pack_base3(codes)

    def unpack(self, packed: Tensor, numel: int) -> Tensor:
        """Unpack `numel` digits from bytes."""
        return unpack_base3(packed, numel)

    def encode_blocks(self, blocks: Tensor, scratch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw each element; codes are -1, 0, 1 plus one."""
        scales = largest_sizes(blocks, scratch)
        scaled = per_block(blocks, scales, scratch)
        if self.clip_deviations is not None:
            limit = (scaled.std(dim=1, correction=0) * self.clip_deviations).clamp_(max=1.0)
            limit = torch.where(limit > 0, limit, 1.0)
            scaled = scaled.clamp_(-limit[:, None], limit[:, None]).div_(limit[:, None])
            scales = scales * limit
        draw = uniform(scaled.numel(), generator, blocks.device).view(scaled.shape)
        return small_integers(scaled.add_(draw).floor_().clamp_(-1, 1)).add_(1), scales

    def decode_blocks_(self, out: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Multiply each digit by the scale."""
        out.copy_(codes).sub_(1).mul_(scales[:, None])
