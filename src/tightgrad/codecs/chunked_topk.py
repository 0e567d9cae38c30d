"""The largest entries of each block: C(x) keeps `count_per_block` entries of largest |x_i| in every block.

    Peng et al. 2024, Decoupled Momentum Optimization, arXiv:2411.19870, and Sarfi et al. 2025, Communication Efficient
    LLM Pre-training with SparseLoCo, arXiv:2508.15706, select like this.

Every part of a tensor is heard, where the largest entries of the whole may all lie in a few rows.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.pieces import pieces
from tightgrad.codecs.bits.sparse import Sparse, check_values
from tightgrad.codecs.cast import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer
from tightgrad.core.protocols import Codec


@dataclass(frozen=True)
class ChunkedTopK(Sparse):
    """Keeps the largest entries of each block, and sends their packed indices and values.

    Args:
        block_size: elements to select from, at least 2.
        count_per_block: kept entries of each, 1 to `block_size`.
        values: codec of the kept values, of scope "element" or "block".

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.ChunkedTopK(block_size=4, count_per_block=1)
        >>> x = torch.tensor([9.0, 8.0, 7.0, 6.0, 0.5, 0.25, -2.0, 0.0])
        >>> codec.decode(codec.encode(x, GradSpec.of("weight", x), torch.Generator()))
        tensor([ 9.,  0.,  0.,  0.,  0.,  0., -2.,  0.])
    """

    block_size: int = 4096
    count_per_block: int = 4
    values: Codec = field(default_factory=Cast)

    card: ClassVar[MethodCard] = MethodCard(
        id="chunked_topk",
        kind="codec",
        summary="the largest entries of each block, indices packed",
        scope="tensor",
        contraction="count_per_block / block_size times the contraction of its values codec",
        reducer="gather",
        reference="Peng et al. 2024, arXiv:2411.19870; Sarfi et al. 2025, arXiv:2508.15706",
        use_when="topk would take all entries from a few rows (embeddings, heads); combine with error feedback",
        avoid_when="there is no error feedback, or ranks times density comes near 1",
    )

    def __post_init__(self) -> None:
        check_integer("block_size", self.block_size, low=2)
        check_integer("count_per_block", self.count_per_block, low=1, high=self.block_size)
        check_values(self.values)

    def count(self, numel: int) -> int:
        """Return how many entries are kept: `count_per_block` of each block, also of a shorter last one if it has as
        many.
        """
        whole, rest = divmod(numel, self.block_size)
        return whole * self.count_per_block + min(rest, self.count_per_block)

    def select(self, flat: Tensor, count: int) -> Tensor:
        """Select the largest |x| of each block: ascending int64 indices."""
        found = [torch.empty(0, dtype=torch.int64, device=flat.device)]
        for start, stop in pieces(flat.numel(), self.block_size, flat.device):
            edge = stop - (stop - start) % self.block_size
            if start < edge:
                sizes = flat[start:edge].view(-1, self.block_size).abs()
                local = sizes.topk(self.count_per_block, dim=1, sorted=False).indices.sort(dim=1).values
                offsets = torch.arange(start, edge, self.block_size, device=flat.device)
                found.append((local + offsets[:, None]).view(-1))
            if edge < stop:
                last = flat[edge:stop].abs()
                kept = last.topk(min(stop - edge, self.count_per_block), sorted=False).indices
                found.append(kept.sort().values + edge)
        return torch.cat(found)
