"""Threshold pruning: C(x) keeps the entries with |x_i| >= threshold.

    Strom 2015, Scalable Distributed DNN Training Using Commodity GPU Cloud Computing, Interspeech.

How many entries that are depends on the data, so ranks tell each other the sizes of their payloads first. Departs from
Strom: values are sent, not only signs.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.cast import Cast
from tightgrad.codecs.selection import above
from tightgrad.codecs.sparse import VariableSparse, check_values
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.protocols import Codec


@dataclass(frozen=True)
class Threshold(VariableSparse):
    """Entries of a given size and more.

    Args:
        threshold: smallest |x| that is kept, above 0.
        values: codec of the kept values, of scope "element" or "block".
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
        use_when="the size of what matters is known and does not change, with error feedback",
        avoid_when="gradients shrink during training: use sampled_threshold or topk",
    )

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, above=0.0)
        check_values(self.values)

    def select(self, flat: Tensor, generator: torch.Generator) -> Tensor:
        """By size."""
        return above(flat, torch.tensor(self.threshold, device=flat.device))
