"""The largest entries of each tensor: C(x) keeps k = round(density * n) entries of largest |x_i|, and zeros the rest.

    Stich et al. 2018, Sparsified SGD with Memory, arXiv:1809.07599; Lin et al. 2017, arXiv:1712.01887.

Biased, so it needs error feedback. Indices cost about 2 + log2(1 / density) bits each; values are encoded by a
codec of their own.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tightgrad.codecs.bits.selection import largest
from tightgrad.codecs.bits.sparse import Sparse, check_values
from tightgrad.codecs.cast import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.protocols import Codec


@dataclass(frozen=True)
class TopK(Sparse):
    """Keeps the largest entries of each tensor, and sends their packed indices and values.

    Args:
        density: kept fraction of each tensor, in (0, 1]; at least one entry is kept.
        values: codec of the kept values, of scope "element" or "block".

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.TopK(density=0.5)
        >>> x = torch.tensor([3.0, -1.0, 0.5, 2.0])
        >>> codec.decode(codec.encode(x, GradSpec.of("weight", x), torch.Generator()))
        tensor([3., 0., 0., 2.])
    """

    density: float
    values: Codec = field(default_factory=Cast)

    card: ClassVar[MethodCard] = MethodCard(
        id="topk",
        kind="codec",
        summary="the largest entries of each tensor, indices packed",
        scope="tensor",
        contraction="density times the contraction of its values codec",
        reducer="gather",
        reference="Stich et al. 2018, arXiv:1809.07599; Lin et al. 2017, arXiv:1712.01887",
        use_when="the link is 10 to 1000 times too slow; combine with error feedback",
        avoid_when="there is no error feedback, or ranks times density comes near 1",
    )

    def __post_init__(self) -> None:
        check_number("density", self.density, above=0.0, high=1.0)
        check_values(self.values)

    def count(self, numel: int) -> int:
        """Return how many of `numel` entries are kept."""
        return min(numel, max(1, round(self.density * numel)))

    def select(self, flat: Tensor, count: int) -> Tensor:
        """Select the entries of largest size: ascending int64 indices."""
        return largest(flat, count)
