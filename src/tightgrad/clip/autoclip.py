"""AutoClip: the bound is a percentile of the gradient norms seen so far.

    Seetharaman, Wichern, Pardo, Le Roux 2020, AutoClip: Adaptive gradient clipping for source separation networks,
    arXiv:2007.14469.

Departs from the paper: the history is bounded (the last `history` norms), lives on the device, and takes in only
finite norms: one NaN would stay in it for good.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightgrad.clip.norm_history import history_slots, with_norm
from tightgrad.clip.one_factor import FOLDS, OneFactorClipper, clip_coefficient
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_integer, check_number
from tightgrad.core.protocols import GradNorm
from tightgrad.core.types import MODEL, Clipped, Grads, Slot, State


@dataclass(frozen=True)
class AutoClip(OneFactorClipper):
    """Clips to a percentile of the norms seen so far.

    Args:
        percentile: of the history, the current norm included, in (0, 100].
        history: the number of norms that are remembered, at least 1.
        warmup_steps: steps that only fill the history, at least 0.
        fold: "auto" hands the factor to torch's own fused Adam, AdamW, SGD and Adagrad, and multiplies the gradients
            where another `step()` or a step pre-hook looks at them first; "on" insists on it, "off" multiplies always.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> clipper, state = tg.clip.AutoClip(percentile=50), {}
        >>> for size in (1.0, 2.0, 30.0):
        ...     grads = {"weight": torch.tensor([0.6, 0.8]) * size}
        ...     clipped = clipper.clip_(grads, {}, tg.get_total_norm, state)
        ...     state = clipped.state
        ...     print(round(float(clipped.total_norm), 3), round(float(tg.get_total_norm(grads.values())), 3))
        1.0 1.0
        2.0 1.5
        30.0 2.0
    """

    percentile: float = 10.0
    history: int = 1000
    warmup_steps: int = 0
    fold: str = "auto"

    card: ClassVar[MethodCard] = MethodCard(
        id="autoclip",
        kind="clip",
        summary="the bound is a percentile of the norms seen so far",
        scope="model",
        reference="Seetharaman et al. 2020, arXiv:2007.14469",
        use_when="the scale of the gradient is not known beforehand",
        avoid_when="norms grow on purpose, as in a learning-rate warm-up longer than the history",
    )

    slots: ClassVar[tuple[Slot, ...]] = history_slots("autoclip", history)

    def __post_init__(self) -> None:
        check_number("percentile", self.percentile, above=0.0, high=100.0)
        check_integer("history", self.history, low=1)
        check_integer("warmup_steps", self.warmup_steps, low=0)
        check_choice("fold", self.fold, FOLDS)
        object.__setattr__(self, "slots", history_slots("autoclip", self.history))

    def factor(self, grads: Grads, norm: GradNorm, state: State) -> Clipped:
        """Remember the norm, then find the factor that clips to the percentile."""
        before = norm(list(grads.values()))
        norms_slot, count_slot = self.slots
        update = with_norm((norms_slot, count_slot), state, before)
        norms, count = update[norms_slot.name][MODEL], update[count_slot.name][MODEL]
        bound = torch.nanquantile(norms, self.percentile / 100)
        bound = torch.where((count > self.warmup_steps) & ~bound.isnan(), bound, torch.inf)
        return Clipped(before, clip_coefficient(before, bound), update)
