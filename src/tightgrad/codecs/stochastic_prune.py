"""Unbiased importance sampling: entry i is kept with probability p_i = min(1, |x_i| / c) and sent as x_i / p_i.

    Wangni et al. 2017, Gradient Sparsification for Communication-Efficient Distributed Optimization, arXiv:1710.09854.

c is such that density * n entries are kept on average, which has the smallest variance that so many can have (their
algorithm 3, greedy). Entries of size c and more are sent as they are; all others become plus or minus c when they are
kept, so a bit says it all. The number of entries depends on the draw, so ranks tell each other sizes first.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.packing import (
    index_nbytes,
    pack_bits,
    pack_indices,
    packed_nbytes,
    unpack_bits,
    unpack_indices,
)
from tightgrad.codecs.bits.sparse import (
    COUNT_NBYTES,
    check_values,
    count_bytes,
    dense_entries,
    or_dense,
    pack_entries,
    read_count,
    unpack_entries,
)
from tightgrad.codecs.cast import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors

NUM_ROUNDS = 4


@dataclass(frozen=True)
class StochasticPrune(Codec):
    """Keeps entries with a probability that grows with their size, and scales them so that there is no bias.

    Args:
        density: expected fraction of kept entries, in (0, 1].
        values: codec of the entries that are always kept; an unbiased or exact one keeps this one unbiased.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.StochasticPrune(density=0.5)
        >>> x = torch.tensor([8.0, 1.0, -1.0, 1.0, 1.0, -1.0])
        >>> codec.decode(codec.encode(x, GradSpec.of("weight", x), torch.Generator().manual_seed(0)))
        tensor([ 8.0000,  0.0000, -2.5000,  2.5000,  2.5000,  0.0000])
    """

    density: float
    values: Codec = field(default_factory=lambda: Cast("float32"))

    card: ClassVar[MethodCard] = MethodCard(
        id="stochastic_prune",
        kind="codec",
        summary="entries drawn by their size, without bias and with the smallest variance",
        scope="tensor",
        unbiased=True,
        reducer="gather",
        reference="Wangni et al. 2017, arXiv:1710.09854",
        use_when="a sparse gradient must be unbiased",
        avoid_when="there is memory for error feedback; topk then sends more of the gradient in as many bytes",
    )

    def __post_init__(self) -> None:
        check_number("density", self.density, above=0.0, high=1.0)
        check_values(self.values)

    @property
    def fixed_size(self) -> bool:
        """Tell whether payloads have a known size; these do not."""
        return False

    @property
    def unbiased(self) -> bool:
        """Tell whether the codec of the values is unbiased or exact."""
        return self.values.unbiased or self.values.linear

    def level(self, flat: Tensor) -> Tensor:
        """Find the c of the equation: a float32 scalar."""
        sizes = flat.abs()
        largest = sizes.max()
        sizes = (sizes / torch.where(largest > 0, largest, 1.0)).double()
        wanted = max(1.0, self.density * flat.numel())
        always = torch.zeros_like(sizes, dtype=torch.bool)
        level = sizes.new_tensor(0.0)
        for _ in range(NUM_ROUNDS):
            left = torch.where(always, 0.0, sizes).sum()
            room = wanted - always.sum().float()
            level = torch.where(room > 0, left / room, 0.0)
            always = sizes >= level
        return (level * largest.double()).float()

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout: one tensor, whose length depends on the draw."""
        return (TensorLayout(torch.uint8, None),)

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Pack the entries that are always kept, then those drawn, as a level and signs."""
        if not spec.numel:
            return Payload((count_bytes(0, flat.device),), spec)
        level = self.level(flat)
        sizes = flat.abs()
        always = sizes >= level
        draw = torch.rand(flat.shape, generator=generator, dtype=torch.float32, device=flat.device)
        drawn = (~always & (draw * level < sizes)).nonzero().view(-1)
        indices = (always & (sizes > 0)).nonzero().view(-1)
        message = torch.cat(
            [
                pack_entries(flat, indices, self.values, spec, generator),
                count_bytes(drawn.numel(), flat.device),
                level.view(1).view(torch.uint8),
                *pack_indices(drawn, spec.numel),
                pack_bits(flat[drawn] < 0, 1),
            ]
        )
        return Payload((or_dense(message, flat, spec),), spec)

    def decode(self, payload: Payload) -> Tensor:
        """Scatter the values into zeros."""
        dense, entries = self._entries(payload)
        if dense is not None:
            return dense
        # Allocated last, when the payload has been found good.
        total = torch.zeros(payload.spec.numel, dtype=payload.spec.dtype, device=payload.spec.device)
        for indices, values in entries:
            total.index_add_(0, indices, values)
        return total

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add both kinds of entries to `total`."""
        dense, entries = self._entries(payload)
        if dense is not None:
            total.add_(dense)
        for indices, values in entries:
            total.index_add_(0, indices, values)

    def _entries(self, payload: Payload) -> tuple[Tensor | None, list[tuple[Tensor, Tensor]]]:
        """All entries where they were sent as they are; or both kinds of indices and values."""
        (message,) = checked_tensors(self, payload)
        spec = payload.spec
        dense = dense_entries(message, spec)
        if dense is not None:
            return dense, []
        indices, values, rest = unpack_entries(message, self.values, spec)
        drawn = [self._drawn(rest, spec)] if spec.numel or rest.numel() else []
        return None, [(indices, values), *drawn]

    def _drawn(self, message: Tensor, spec: GradSpec) -> tuple[Tensor, Tensor]:
        count = read_count(message)
        num_low, num_high = index_nbytes(spec.numel, count) if 0 <= count <= spec.numel else (0, 0)
        ends = [COUNT_NBYTES + 4, COUNT_NBYTES + 4 + num_low, COUNT_NBYTES + 4 + num_low + num_high]
        if not 0 <= count <= spec.numel or message.numel() != ends[-1] + packed_nbytes(count, 1):
            raise PayloadError(
                f"a payload of stochastic_prune for {spec.name!r} ({spec.numel} elements) says {count} drawn entries "
                f"in {message.numel()} bytes; it is damaged."
            )
        level = message[COUNT_NBYTES : ends[0]].clone().view(torch.float32)
        indices = unpack_indices(message[ends[0] : ends[1]], message[ends[1] : ends[2]], spec.numel, count)
        negative = unpack_bits(message[ends[2] :], count, 1).to(torch.bool)
        return indices, torch.where(negative, -level, level)
