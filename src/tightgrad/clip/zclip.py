"""ZClip: a norm far above its running mean is brought back, the further the harder.

    z = (||g|| - mean) / std.  If z > z_threshold, the bound is
        reciprocal:  mean + std * z_threshold^2 / z      (the paper's)
        threshold:   mean + std * z_threshold
        mean:        mean
    mean and variance are exponential moving averages of the norms after clipping.

    Kumar, Owen, Roy Chowdhury, Guera 2025, ZClip: Adaptive spike mitigation for LLM pre-training, arXiv:2504.02507.

Departs from the paper's code: only finite norms are learned from (there one NaN norm disables clipping for good), and
the statistics are part of the state.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.clip.one_factor import FOLDS, OneFactorClipper, clip_coefficient
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_integer, check_number
from tightgrad.core.protocols import GradNorm
from tightgrad.core.types import MODEL, Clipped, Grads, Slot, State

RULES = ("reciprocal", "threshold", "mean")
STATISTICS = Slot("zclip_statistics", across_ranks="equal", of_model=True, shape=(3,))
"""In float64: number of norms (up to the warm-up's), mean, standard deviation. An earlier version's float32 hold the
variance in its place, whose range a large norm leaves.
"""
EPS = 1e-6


@dataclass(frozen=True)
class ZClip(OneFactorClipper):
    """Brings back a norm that is far above its running mean.

    Args:
        z_threshold: the z-score above which a norm is clipped, above 0.
        alpha: how much of mean and variance stays at each step, in [0, 1).
        warmup_steps: norms that mean and variance start from, at least 1; until then only `max_norm` holds.
        rule: "reciprocal", "threshold" or "mean".
        max_norm: a bound that holds always, above 0; inf is none.
        fold: "auto" hands the factor to torch's own fused Adam, AdamW, SGD and Adagrad, and multiplies the gradients
            where another `step()` or a step pre-hook looks at them first; "on" insists on it, "off" multiplies always.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> clipper, state = tg.clip.ZClip(warmup_steps=4), {}
        >>> for size in (1.0, 1.1, 0.9, 1.0, 50.0):
        ...     grads = {"weight": torch.tensor([0.6, 0.8]) * size}
        ...     clipped = clipper.clip_(grads, {}, tg.get_total_norm, state)
        ...     state = clipped.state
        >>> float(clipped.total_norm), float(tg.get_total_norm(grads.values())) < 1.2
        (50.0, True)
    """

    z_threshold: float = 2.5
    alpha: float = 0.97
    warmup_steps: int = 25
    rule: str = "reciprocal"
    max_norm: float = math.inf
    fold: str = "auto"

    card: ClassVar[MethodCard] = MethodCard(
        id="zclip",
        kind="clip",
        summary="spikes of the norm are brought back towards its running mean",
        scope="model",
        reference="Kumar et al. 2025, arXiv:2504.02507",
        use_when="a language model's loss spikes now and then",
        avoid_when="norms are heavy-tailed at every step; use a fixed bound instead",
    )

    slots: ClassVar[tuple[Slot, ...]] = (STATISTICS,)

    def __post_init__(self) -> None:
        check_number("z_threshold", self.z_threshold, above=0.0)
        check_number("alpha", self.alpha, low=0.0)
        check_number("1 - alpha", 1 - self.alpha, above=0.0)
        check_integer("warmup_steps", self.warmup_steps, low=1)
        check_choice("rule", self.rule, RULES)
        check_number("max_norm", self.max_norm, above=0.0)
        check_choice("fold", self.fold, FOLDS)

    def factor(self, grads: Grads, norm: GradNorm, state: State) -> Clipped:
        """Find the factor that clips a spike, then learn the norm as clipped."""
        before = norm(list(grads.values()))
        statistics = state.get(STATISTICS.name, {}).get(MODEL)
        if statistics is None:
            statistics = torch.zeros(3, dtype=torch.float64, device=before.device)
        if statistics.dtype is torch.float32:
            statistics = torch.cat([statistics[:2], statistics[2:].sqrt()]).double()
        bound = self._bound(before, statistics)
        learned = self._learned(torch.minimum(before, bound), statistics)
        statistics = torch.where(before.isfinite(), learned, statistics)
        capped = torch.clamp(bound, max=self.max_norm)
        return Clipped(before, clip_coefficient(before, capped), {STATISTICS.name: {MODEL: statistics}})

    def _bound(self, norm: Tensor, statistics: Tensor) -> Tensor:
        count, mean, std = statistics.unbind()
        z = (norm - mean) / (std + EPS)
        if self.rule == "reciprocal":
            bound = mean + std * self.z_threshold**2 / z
        else:
            bound = mean + (std * self.z_threshold if self.rule == "threshold" else 0.0)
        # 0 * inf and inf / inf are NaN: an infinite norm of a known distribution goes to the mean.
        bound = torch.where(bound.isnan() & norm.isinf(), mean, bound)
        return torch.where((count >= self.warmup_steps) & (z > self.z_threshold), bound, torch.inf)

    def _learned(self, norm: Tensor, statistics: Tensor) -> Tensor:
        count, mean, std = statistics.unbind()
        number = torch.clamp(count + 1, max=float(self.warmup_steps))
        warm = count >= self.warmup_steps
        share = torch.where(warm, 1 - self.alpha, 1 / number)
        new_mean = mean + share * (norm - mean)
        # In the warm-up this is the deviation of all norms so far, afterwards the paper's moving average. Squares are
        # taken of numbers of at most 1: those of float64 norms may leave float64's range.
        unit = torch.maximum(std, (norm - mean).abs())
        unit = torch.where(unit > 0, unit, 1.0)
        variance, first, last = (std / unit).square(), (norm - mean) / unit, (norm - new_mean) / unit
        square = torch.where(warm, last.square(), first * last)
        return torch.stack([number, new_mean, unit * (variance + share * (square - variance)).clamp(min=0.0).sqrt()])
