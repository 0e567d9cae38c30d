"""The largest entries of each tensor: C(x) keeps k = round(density * n) entries of largest |x_i|, and zeros the rest.

    Stich et al. 2018, Sparsified SGD with Memory, arXiv:1809.07599; Lin et al. 2017, arXiv:1712.01887.

Biased, so it needs error feedback. Indices cost about 2 + log2(1 / density) bits each; values are encoded by a
codec of their own.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.cast import Cast
from tightgrad.codecs.packing import index_nbytes, pack_indices, unpack_indices
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors


@dataclass(frozen=True)
class TopK(Codec):
    """Packed indices and values of the largest entries.

    Args:
        density: kept fraction of each tensor, in (0, 1]; at least one entry is kept.
        values: codec of the kept values, of scope "element" or "block".
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
        use_when="the link is ten to a thousand times too slow, with error feedback",
        avoid_when="there is no error feedback, or ranks times density comes near 1",
    )

    def __post_init__(self) -> None:
        check_number("density", self.density, above=0.0, high=1.0)
        values: object = self.values
        if not isinstance(values, Codec) or values.card.scope not in ("element", "block"):
            raise ConfigError(f"values={self.values!r} must be a codec of scope element or block, such as Cast().")

    def count(self, numel: int) -> int:
        """How many of `numel` entries are kept."""
        return min(numel, max(1, round(self.density * numel)))

    def contraction(self, numel: int) -> float:
        """The largest k of n entries hold at least k / n of the squared norm."""
        count = self.count(numel)
        return self.values.contraction(count) * count / numel if numel else 1.0

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Low index bits, high index bits, then the values' payload."""
        count = self.count(spec.numel)
        indices = tuple(TensorLayout(torch.uint8, nbytes) for nbytes in index_nbytes(spec.numel, count))
        return indices + self.values.layout(spec.part(count))

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Select by magnitude and pack in index order."""
        count = self.count(spec.numel)
        indices = flat.abs().topk(count, sorted=False).indices.sort().values
        kept = self.values.encode(flat[indices], spec.part(count), generator)
        return Payload((*pack_indices(indices, spec.numel), *kept.tensors), spec)

    def decode(self, payload: Payload) -> Tensor:
        """Scatter into zeros."""
        total = torch.zeros(payload.spec.numel, dtype=payload.spec.dtype, device=payload.spec.device)
        self.add_to_(total, payload)
        return total

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add the kept entries to `total`, leaving the others untouched."""
        low, high, *values = checked_tensors(self, payload)
        count = self.count(payload.spec.numel)
        indices = unpack_indices(low, high, payload.spec.numel, count)
        total.index_add_(0, indices, self.values.decode(Payload(tuple(values), payload.spec.part(count))))
