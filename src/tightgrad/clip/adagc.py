"""AdaGC: each tensor is clipped relative to a moving average gamma of its own clipped norms.

    warm-up:   g_i <- g_i * min(1, max_norm / ||g||),               gamma_i <- min(gamma_i, ||g_i||)
    then:      g_i <- g_i * min(1, relative * gamma_i / ||g_i||),   gamma_i <- beta gamma_i + (1 - beta) ||g_i||

    Wang, Li, Chen, Zeng, Yang, Yu, Ma, Shen 2025, AdaGC: Enhancing LLM pretraining stability via adaptive gradient
    clipping, arXiv:2502.11034 (Adam is not part of it here).

Departs from the paper: only norms that are finite and above 0 are learned from (gamma = 0 would stop a tensor whose
gradient was zero once for good), and a tensor without a gamma yet is not clipped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tightgrad.clip.norm import exact_norms
from tightgrad.clip.one_factor import clip_coefficient
from tightgrad.clip.per_tensor_norm import scale_tensors_
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer, check_number
from tightgrad.core.protocols import Clipper, GradNorm
from tightgrad.core.types import MODEL, Clipped, Grads, Slot, State

# In the norms' own dtype, float64. An earlier version's float32 is read as well.
GAMMA = Slot("adagc_gamma", across_ranks="equal", shape=())
COUNT = Slot("adagc_count", across_ranks="equal", of_model=True, shape=(), dtype=torch.int64)


@dataclass(frozen=True)
class AdaGC(Clipper):
    """Clips each tensor to a bound that follows its own past norms.

    Args:
        relative: how far above its moving average a norm may lie, at least 1.
        beta: how much of the moving average stays at each step, in [0, 1).
        warmup_steps: steps with one global bound, at least 1.
        max_norm: that bound, above 0.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> clipper, state = tg.clip.AdaGC(relative=1.05, warmup_steps=1), {}
        >>> for size in (1.0, 1.0, 10.0):
        ...     grads = {"weight": torch.tensor([0.6, 0.8]) * size}
        ...     clipped = clipper.clip_(grads, {}, tg.get_total_norm, state)
        ...     state = clipped.state
        ...     print(round(float(clipped.total_norm), 3), round(float(tg.get_total_norm(grads.values())), 3))
        1.0 1.0
        1.0 1.0
        10.0 1.05
    """

    relative: float = 1.05
    beta: float = 0.98
    warmup_steps: int = 100
    max_norm: float = 1.0

    card: ClassVar[MethodCard] = MethodCard(
        id="adagc",
        kind="clip",
        summary="each tensor is clipped relative to a moving average of its own clipped norms",
        scope="tensor",
        reference="Wang et al. 2025, arXiv:2502.11034",
        use_when="a language model's loss spikes start in single tensors",
        avoid_when="the gradients of a tensor come and go, as in mixtures of experts with rare experts",
    )

    slots: ClassVar[tuple[Slot, ...]] = (GAMMA, COUNT)

    def __post_init__(self) -> None:
        check_number("relative", self.relative, low=1.0)
        check_number("beta", self.beta, low=0.0)
        check_number("1 - beta", 1 - self.beta, above=0.0)
        check_integer("warmup_steps", self.warmup_steps, low=1)
        check_number("max_norm", self.max_norm, above=0.0)

    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Scale each gradient by its own factor, then learn the norms as clipped."""
        values = list(grads.values())
        before = norm(values)
        if not values:
            return Clipped(before, torch.ones_like(before))
        norms = exact_norms(values)
        count = state.get(COUNT.name, {}).get(MODEL)
        if count is None:
            count = torch.zeros((), dtype=torch.int64, device=norms.device)
        gammas = self._gammas(grads, norms, state)
        warm = count >= self.warmup_steps
        bounds = self.relative * gammas
        coefficients = torch.where(
            warm, torch.where(norms <= bounds, 1.0, bounds / norms), clip_coefficient(before, self.max_norm)
        )
        clipped_norms = norms * coefficients
        moved = torch.where(gammas.isinf(), clipped_norms, self.beta * gammas + (1 - self.beta) * clipped_norms)
        learned = torch.where(warm, moved, torch.minimum(gammas, clipped_norms))
        usable = clipped_norms.isfinite() & (clipped_norms > 0) & before.isfinite()
        new_gammas = torch.where(usable, learned, gammas).unbind()
        update = {
            GAMMA.name: {name: gamma.clone() for name, gamma in zip(grads, new_gammas, strict=True)},
            COUNT.name: {MODEL: count + before.isfinite()},
        }
        return Clipped(before, scale_tensors_(values, norms, coefficients).to(before.dtype), update)

    @staticmethod
    def _gammas(grads: Grads, norms: Tensor, state: State) -> Tensor:
        known = state.get(GAMMA.name, {})
        unknown = norms.new_full((), math.inf)
        return torch.stack([known.get(name, unknown).to(norms.dtype) for name in grads])
