"""Adaptive threshold pruning: C(x) keeps the entries with |x_i| >= t, where a sample of the entries gives t.

    Aji and Heafield 2017, Sparse Communication for Distributed Gradient Descent, arXiv:1704.05021; Lin et al. 2017,
    arXiv:1712.01887.

The number of kept entries depends on the data, so ranks tell each other the sizes of their payloads first. Departs from
the papers: the sample is not drawn at random but at the multiples of a large prime, so that the codec is deterministic.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.selection import above, largest
from tightgrad.codecs.bits.sparse import VariableSparse, check_values
from tightgrad.codecs.cast import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer, check_number
from tightgrad.core.protocols import Codec

_SPREAD = 2654435761  # a prime near 2^32 over the golden ratio: its multiples lie evenly, whatever the row length


@dataclass(frozen=True)
class SampledThreshold(VariableSparse):
    """Keeps the entries above a quantile that is estimated from a sample of the tensor.

    Args:
        density: wanted fraction of kept entries, in (0, 1].
        num_samples: entries of the sample, at least 16; shorter tensors are taken in full.
        values: codec of the kept values, of scope "element" or "block".

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.SampledThreshold(density=0.25)
        >>> x = torch.tensor([4.0, -3.0, 2.0, 1.0, 0.5, 0.5, 0.25, 0.0])
        >>> codec.decode(codec.encode(x, GradSpec.of("weight", x), torch.Generator().manual_seed(0)))
        tensor([ 4., -3.,  0.,  0.,  0.,  0.,  0.,  0.])
    """

    density: float
    num_samples: int = 65536
    values: Codec = field(default_factory=Cast)

    card: ClassVar[MethodCard] = MethodCard(
        id="sampled_threshold",
        kind="codec",
        summary="the entries above a size that a sample of them gives",
        scope="tensor",
        reducer="gather",
        reference="Aji and Heafield 2017, arXiv:1704.05021; Lin et al. 2017, arXiv:1712.01887",
        use_when="the number of sent entries may follow the gradient instead of being exact",
        avoid_when="the size of payloads must be known; topk is as fast here, and exact",
    )

    def __post_init__(self) -> None:
        check_number("density", self.density, above=0.0, high=1.0)
        check_integer("num_samples", self.num_samples, low=16)
        check_values(self.values)

    def select(self, flat: Tensor, generator: torch.Generator) -> Tensor:
        """Select the entries at or above the estimated quantile."""
        numel = flat.numel()
        if not numel:
            return torch.empty(0, dtype=torch.int64, device=flat.device)
        sample = flat
        if numel > self.num_samples:
            sample = flat[torch.arange(self.num_samples, device=flat.device).mul_(_SPREAD).remainder_(numel)]
        count = min(sample.numel(), max(1, round(self.density * sample.numel())))
        return above(flat, sample[largest(sample, count)].abs().min())
