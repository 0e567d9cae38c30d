"""Scaled sign: C(x)_i = mean|x| sign(x_i) over each block, one bit an element.

    Seide et al. 2014, 1-Bit SGD, Interspeech; Bernstein et al. 2018, signSGD, arXiv:1802.04434; Karimireddy et al.
    2019, arXiv:1901.09847 (scale and error feedback).

sign(0) = +1, as one bit has no third value; a block of zeros has the scale zero and stays zero. Under the reducer
`two_shot` the sum over ranks is weighted by their scales; under `majority_vote` each rank has one vote.

Departs from Karimireddy: one scale a block, not one a layer.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.blockwise import BlockCodec
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer


@dataclass(frozen=True)
class Sign(BlockCodec):
    """Sends the sign of each element, one bit, with one float32 scale a block: the mean of |x|.

    Args:
        block_size: elements that share a scale, at least 8.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.Sign(block_size=8)
        >>> x = torch.tensor([1.0, -2.0, 3.0, -6.0])
        >>> payload = codec.encode(x, GradSpec.of("weight", x), torch.Generator())
        >>> payload.nbytes, codec.decode(payload).tolist()
        (5, [3.0, -3.0, 3.0, -3.0])
    """

    block_size: int = 1024

    sends_signs: ClassVar[bool] = True
    card: ClassVar[MethodCard] = MethodCard(
        id="sign",
        kind="codec",
        summary="signs, scaled by each block's mean size, 1 bit",
        scope="block",
        contraction="(mean|x|)^2 / mean(x^2) of each block, at least 1 / block_size",
        reducer="two_shot",
        reference="Bernstein et al. 2018, arXiv:1802.04434; Karimireddy et al. 2019, arXiv:1901.09847",
        use_when="you need about 30 times fewer bytes and topk loses too much; combine with error feedback",
        avoid_when="there is no error feedback",
    )

    def __post_init__(self) -> None:
        check_integer("block_size", self.block_size, low=8)

    @property
    def code_bits(self) -> int:
        """Return the number of bits of one sign: one."""
        return 1

    def contraction(self, numel: int) -> float:
        """Return 1 / block_size: all of a block's squared norm may lie in one element."""
        return 1.0 / max(1, min(numel, self.block_size))

    def encode_blocks(self, blocks: Tensor, scratch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Write a one for each negative element; scales are means of |x|."""
        scales = torch.abs(blocks, out=scratch).div_(blocks.shape[1]).sum(dim=1)
        return (blocks < 0).to(torch.uint8), scales

    def decode_blocks_(self, out: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Write plus or minus the scale."""
        out.copy_(codes).mul_(-2).add_(1).mul_(scales[:, None])
