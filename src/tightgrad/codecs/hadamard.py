"""Rotation before quantisation: C(x) = D H' Q(H D x) over each block, H orthonormal and D random signs.

    Suresh et al. 2016, Distributed Mean Estimation with Limited Communication, arXiv:1611.00429.

A rotation spreads one large entry over its whole block, so that the block's scale is no longer that entry's. Signs come
from the seed that ranks share, new at each step, the same for every block. The last block is padded with zeros up to a
power of two.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.pieces import pieces
from tightgrad.codecs.int_block import IntBlock
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.rng import seeded
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors


@dataclass(frozen=True)
class Hadamard(Codec):
    """Rotates each block at random before another codec encodes it, and back after decoding.

    Args:
        inner: a codec of scope "element" or "block", and fixed size.
        block_size: elements that are rotated together, a power of two of at least 8.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> x = torch.zeros(256)
        >>> x[7] = 100.0
        >>> x[8:] = torch.linspace(-1, 1, 248)
        >>> spec = GradSpec.of("weight", x, seed=1)
        >>> plain, rotated = tg.codecs.IntBlock(4), tg.codecs.Hadamard(tg.codecs.IntBlock(4))
        >>> [int(codec.decode(codec.encode(x, spec, torch.Generator())).count_nonzero()) for codec in (plain, rotated)]
        [1, 252]
    """

    inner: Codec = field(default_factory=lambda: IntBlock(4))
    block_size: int = 256

    card: ClassVar[MethodCard] = MethodCard(
        id="hadamard",
        kind="codec",
        summary="a random rotation of each block before another codec, and back after it",
        scope="block",
        contraction="that of the inner codec",
        reducer="two_shot",
        reference="Suresh et al. 2016, arXiv:1611.00429",
        use_when="bits are few and single entries are much larger than their neighbours",
        avoid_when="8 bits are enough, or time to encode matters",
    )

    def __post_init__(self) -> None:
        check_integer("block_size", self.block_size, low=8)
        if self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size={self.block_size} must be a power of two, such as 256.")
        inner: object = self.inner
        if not isinstance(inner, Codec) or inner.scope not in ("element", "block") or not inner.fixed_size:
            raise ConfigError(f"inner={inner!r} must be a codec of scope element or block and fixed size.")

    @property
    def unbiased(self) -> bool:
        """Tell whether the inner codec is unbiased."""
        return self.inner.unbiased

    @property
    def granularity(self) -> int:
        """Return the least common multiple of both block sizes, since chunks must be whole blocks of both."""
        return math.lcm(self.block_size, self.inner.granularity)

    def contraction(self, numel: int) -> float:
        """Return the inner codec's contraction, since a rotation changes no norm."""
        return self.inner.contraction(self.rotated_numel(numel))

    def rotated_numel(self, numel: int) -> int:
        """Return the number of elements once the last block is filled up to a power of two."""
        rest = numel % self.block_size
        return numel - rest + (1 << (rest - 1).bit_length() if rest else 0)

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout of the inner codec's payload."""
        return self.inner.layout(spec.part(self.rotated_numel(spec.numel)))

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Flip signs at random, rotate each block, and encode."""
        rotated = torch.zeros(self.rotated_numel(spec.numel), dtype=torch.float32, device=flat.device)
        rotated[: spec.numel] = flat
        signs = self._signs(spec).to(flat.device)
        for blocks in self._blocks(rotated):
            blocks.copy_(rotate(blocks.mul_(signs[: blocks.shape[1]])))
        payload = self.inner.encode(rotated, spec.part(rotated.numel()), generator)
        return Payload(payload.tensors, spec)

    def decode(self, payload: Payload) -> Tensor:
        """Decode, rotate each block back, and flip the signs back."""
        spec = payload.spec
        tensors = checked_tensors(self, payload)
        rotated = self.inner.decode(Payload(tensors, spec.part(self.rotated_numel(spec.numel))))
        signs = self._signs(spec).to(rotated.device)
        for blocks in self._blocks(rotated):
            blocks.copy_(rotate(blocks)).mul_(signs[: blocks.shape[1]])
        return rotated[: spec.numel]

    def _signs(self, spec: GradSpec) -> Tensor:
        generator = seeded(spec.seed, torch.device("cpu"))
        return torch.randint(2, (self.block_size,), generator=generator, device="cpu").mul_(2).sub_(1).float()

    def _blocks(self, rotated: Tensor) -> list[Tensor]:
        """Views (m, b): pieces of whole blocks, then the last, smaller one."""
        whole = rotated.numel() - rotated.numel() % self.block_size
        spans = pieces(whole, self.block_size, rotated.device)
        blocks = [rotated[start:stop].view(-1, self.block_size) for start, stop in spans]
        return [*blocks, rotated[whole:].view(1, -1)] if whole < rotated.numel() else blocks


def rotate(blocks: Tensor) -> Tensor:
    """Apply the orthonormal Walsh-Hadamard transform, its own inverse, to each row of (m, b), b a power of two."""
    count, size = blocks.shape
    # Columns of blocks, so that each butterfly adds long rows.
    result = blocks.T.contiguous()
    half = 1
    while half < size:
        # Shrunk before they are added, so that nothing overflows that ends within range.
        left, right = result.mul_(0.5**0.5).view(-1, 2, half * count).unbind(1)
        result = torch.stack([left + right, left - right], dim=1)
        half *= 2
    return result.view(size, count).T
