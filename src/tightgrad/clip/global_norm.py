"""Norm clipping: g <- g * min(1, max_norm / ||g||), one norm over all parameters.

    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv:1211.5063.

Departs from `torch.nn.utils.clip_grad_norm_`: the bound is exact (`compat="torch"` adds its 1e-6), the norm is
float32 and cannot overflow, and `max_norm=inf` is the identity.
"""

from dataclasses import dataclass
from typing import ClassVar

from tightgrad.clip.one_factor import FOLDS, OneFactorClipper
from tightgrad.clip.one_factor import clip_coefficient as clip_coefficient
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_number
from tightgrad.core.protocols import GradNorm
from tightgrad.core.types import Clipped, Grads, State


@dataclass(frozen=True)
class GlobalNorm(OneFactorClipper):
    """Multiplies all gradients by one factor, so that their common norm is at most `max_norm`.

    Args:
        max_norm: the largest norm that passes, above 0; inf measures without changing anything.
        norm_type: p of the norm, above 0.
        compat: "exact", or "torch" for max_norm / (norm + 1e-6).
        fold: "auto" hands the factor to torch's own fused Adam, AdamW, SGD and Adagrad, and multiplies the gradients
            where another `step()` or a step pre-hook looks at them first; "on" insists on it, "off" multiplies always.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> grads = {"weight": torch.tensor([6.0, 0.0]), "bias": torch.tensor([8.0])}
        >>> clipped = tg.clip.GlobalNorm(5.0).clip_(grads, {}, tg.get_total_norm, {})
        >>> grads, float(clipped.total_norm), float(clipped.clip_coef)
        ({'weight': tensor([3., 0.]), 'bias': tensor([4.])}, 10.0, 0.5)
    """

    max_norm: float
    norm_type: float = 2.0
    compat: str = "exact"
    fold: str = "auto"

    card: ClassVar[MethodCard] = MethodCard(
        id="global_norm",
        kind="clip",
        summary="one factor for all gradients, from one norm; keeps the direction",
        scope="model",
        reference="Pascanu, Mikolov, Bengio 2013, arXiv:1211.5063",
        use_when="gradients explode now and then, as in recurrent networks and transformers",
        avoid_when="a single layer explodes and the others should not be scaled down with it; clip per tensor instead",
    )

    def __post_init__(self) -> None:
        check_number("max_norm", self.max_norm, above=0.0)
        check_number("norm_type", self.norm_type, above=0.0)
        check_choice("compat", self.compat, ("exact", "torch"))
        check_choice("fold", self.fold, FOLDS)

    def factor(self, grads: Grads, norm: GradNorm, state: State) -> Clipped:
        """Find one norm and one factor for all gradients."""
        before = norm(list(grads.values()), self.norm_type)
        return Clipped(before, clip_coefficient(before, self.max_norm, self.compat))
