"""Block-wise integers: q = round(x / s), s = max|x| / (2^(bits-1) - 1) over each block; C(x) = s q.

    Dettmers et al. 2021, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861; Alistarh et al. 2017,
    QSGD, arXiv:1610.02132 (stochastic rounding).

Departs from Dettmers: linear levels instead of dynamic ones, so that one multiplication decodes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.packing import pack_bits, packed_nbytes, unpack_bits
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_integer
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors

ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class IntBlock(Codec):
    """Signed integers with one float32 scale a block.

    Args:
        bits: 8 or 4 bits an element.
        block_size: elements that share a scale, at least 8.
        rounding: "nearest" (biased, smallest error) or "stochastic" (unbiased).
    """

    bits: int = 8
    block_size: int = 256
    rounding: str = "nearest"

    card: ClassVar[MethodCard] = MethodCard(
        id="int_block",
        kind="codec",
        summary="8- or 4-bit integers with one scale a block",
        scope="block",
        contraction="1 - block_size / (4 (2^(bits-1) - 1)^2) where that is positive, nearest rounding",
        reducer="two_shot",
        reference="Dettmers et al. 2021, arXiv:2110.02861; Alistarh et al. 2017, arXiv:1610.02132",
        use_when="the link is up to about eight times too slow",
        avoid_when="the link is slower than that: sparsify",
    )

    def __post_init__(self) -> None:
        check_choice("bits", self.bits, (8, 4))
        check_integer("block_size", self.block_size, low=8)
        check_choice("rounding", self.rounding, ROUNDINGS)

    @property
    def granularity(self) -> int:
        """Chunks are whole blocks."""
        return self.block_size

    @property
    def levels(self) -> int:
        """The largest integer used: 127 or 7."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def unbiased(self) -> bool:
        """Stochastic rounding is."""
        return self.rounding == "stochastic"

    def contraction(self, numel: int) -> float:
        """From an error of at most half a level an element; stochastic rounding errs by up to a whole one."""
        half_levels = 2 * self.levels if self.rounding == "nearest" else self.levels
        return max(0.0, 1.0 - min(numel, self.block_size) / half_levels**2)

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Packed integers, then one float32 a block."""
        num_blocks = -(-spec.numel // self.block_size)
        return (
            TensorLayout(torch.uint8, packed_nbytes(spec.numel, self.bits)),
            TensorLayout(torch.float32, num_blocks),
        )

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Scale each block to the integer range and round."""
        blocks = torch.nn.functional.pad(flat, (0, -spec.numel % self.block_size)).view(-1, self.block_size)
        scales = blocks.abs().amax(dim=1) / self.levels
        scaled = blocks / torch.where(scales > 0, scales, torch.inf)[:, None]
        if self.rounding == "stochastic":
            scaled = (scaled + torch.rand(scaled.shape, generator=generator, device=flat.device)).floor_()
        else:
            scaled = scaled.round_()
        integers = scaled.clamp_(-self.levels, self.levels).view(-1)[: spec.numel].to(torch.int8)
        packed = integers.view(torch.uint8) if self.bits == 8 else pack_bits(integers + self.levels, self.bits)
        return Payload((packed, scales), spec)

    def decode(self, payload: Payload) -> Tensor:
        """Multiply by the scales."""
        packed, scales = checked_tensors(self, payload)
        numel = payload.spec.numel
        if self.bits == 8:
            integers = packed.view(torch.int8)
        else:
            integers = unpack_bits(packed, numel, self.bits).to(torch.int8) - self.levels
        values = torch.nn.functional.pad(integers, (0, -numel % self.block_size)).view(-1, self.block_size)
        return (values.to(payload.spec.dtype) * scales[:, None]).view(-1)[:numel]
