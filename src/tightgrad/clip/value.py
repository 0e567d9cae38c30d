"""Value clipping: each entry is limited to [-max_value, max_value].

    Mikolov 2012, Statistical language models based on neural networks (thesis).

Changes the direction of the gradient. Of a complex entry the real and the imaginary part are limited each, as if the
parameter were `torch.view_as_real` of itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tightgrad.clip.dtensor import clamp_
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_number
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import Clipped, Grads, State


@dataclass(frozen=True)
class Value(Clipper):
    """Limits every entry; of a complex one its real and its imaginary part.

    Args:
        max_value: the largest absolute value that passes, above 0; inf measures without changing anything.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> grads = {"weight": torch.tensor([0.5, -30.0, float("nan")])}
        >>> clipped = tg.clip.Value(1.0).clip_(grads, {}, tg.get_total_norm, {})
        >>> grads["weight"]
        tensor([ 0.5000, -1.0000,     nan])
    """

    max_value: float

    card: ClassVar[MethodCard] = MethodCard(
        id="value",
        kind="clip",
        summary="a limit on every entry; changes the direction",
        scope="element",
        reference="Mikolov 2012, thesis",
        use_when="single entries explode",
        avoid_when="the direction of the gradient matters; clip the norm instead",
    )

    def __post_init__(self) -> None:
        check_number("max_value", self.max_value, above=0.0)

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Clamp every entry to [-max_value, max_value]. NaN stays NaN."""
        before = norm(list(grads.values()))
        clamp_(grads.values(), self.max_value)
        after = norm(list(grads.values()))
        return Clipped(before, torch.where(before == 0, 1.0, after / before))
