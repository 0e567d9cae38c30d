"""Threshold pruning: C(x) keeps the entries with |x_i| >= threshold.

    Strom 2015, Scalable Distributed DNN Training Using Commodity GPU Cloud Computing, Interspeech.

The number of kept entries depends on the data, so ranks tell each other the sizes of their payloads first. Departs from
Strom: values are sent, not only signs.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.selection import above
from tightgrad.codecs.bits.sparse import VariableSparse, check_values
from tightgrad.codecs.cast import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.protocols import Codec


@dataclass(frozen=True)
class Threshold(VariableSparse):
    """Keeps the entries whose size is at least a fixed threshold.

    Args:
        threshold: smallest |x| that is kept, above 0.
        values: codec of the kept values, of scope "element" or "block".

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.Threshold(1.0)
        >>> x = torch.tensor([0.5, -2.0, 1.0, 0.25])
        >>> codec.decode(codec.encode(x, GradSpec.of("weight", x), torch.Generator()))
        tensor([ 0., -2.,  1.,  0.])
    """

    threshold: float
    values: Codec = field(default_factory=Cast)

    card: ClassVar[MethodCard] = MethodCard(
        id="threshold",
        kind="codec",
        summary="the entries above a fixed size",
        scope="tensor",
        reducer="gather",
        reference="Strom 2015, Interspeech",
        use_when="the size of important entries is known and does not change; combine with error feedback",
        avoid_when="gradients shrink during training; use sampled_threshold or topk instead",
    )

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, above=0.0)
        check_values(self.values)

    def select(self, flat: Tensor, generator: torch.Generator) -> Tensor:
        """Select the entries whose size is at least the threshold."""
        return above(flat, torch.tensor(self.threshold, dtype=torch.float32, device=flat.device))
