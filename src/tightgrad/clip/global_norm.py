"""Norm clipping: g <- g * min(1, max_norm / ||g||), one norm over all parameters.

    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv:1211.5063.

Departs from `torch.nn.utils.clip_grad_norm_`: the bound is exact (`compat="torch"` adds its 1e-6), the norm is
float32 and cannot overflow, and `max_norm=inf` is the identity.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_number
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import Clipped, Grads, State

TORCH_EPS = 1e-6


def clip_coefficient(norm: Tensor, max_norm: float, compat: str = "exact") -> Tensor:
    """min(1, max_norm / norm) as a float32 scalar, with 0 / 0 = 1; NaN if the norm is NaN."""
    if math.isinf(max_norm):
        return torch.ones_like(norm)
    if compat == "torch":
        return torch.clamp(max_norm / (norm + TORCH_EPS), max=1.0)
    return torch.where(norm <= max_norm, 1.0, max_norm / norm)


@dataclass(frozen=True)
class GlobalNorm(Clipper):
    """One factor for all gradients.

    Args:
        max_norm: the largest norm that passes, above 0; inf measures without changing anything.
        norm_type: p of the norm, above 0.
        compat: "exact", or "torch" for max_norm / (norm + 1e-6).
    """

    max_norm: float
    norm_type: float = 2.0
    compat: str = "exact"

    card: ClassVar[MethodCard] = MethodCard(
        id="global_norm",
        kind="clip",
        summary="one factor for all gradients, from one norm; keeps the direction",
        scope="model",
        reference="Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063",
        use_when="gradients explode now and then: recurrent networks, transformers",
        avoid_when="one layer explodes alone and the others should go on: clip per tensor",
    )

    def __post_init__(self) -> None:
        check_number("max_norm", self.max_norm, above=0.0)
        check_number("norm_type", self.norm_type, above=0.0)
        check_choice("compat", self.compat, ("exact", "torch"))

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Scale all gradients by one factor."""
        before = norm(list(grads.values()), self.norm_type)
        coefficient = clip_coefficient(before, self.max_norm, self.compat)
        if grads and not math.isinf(self.max_norm):
            torch._foreach_mul_(list(grads.values()), coefficient)
        return Clipped(before, coefficient)
