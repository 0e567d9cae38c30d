"""The gradient noise scale B = tr(S) / |G|^2: about the batch size up to which larger batches pay.

    McCandlish, Kaplan, Amodei 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162, appendix A.1.

G is the true gradient and S the covariance of one sample's. The mean gradient of b samples has
E|g_b|^2 = |G|^2 + tr(S) / b, so the squared norms at two batch sizes give unbiased estimates of both:

    |G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b)        tr(S) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)

Their ratio is biased and noisy, so numerator and denominator are averaged over steps first, as the paper does.
Departs from the paper: the small batches may be of unequal size (averaged with their size as the weight, which leaves
both estimates unbiased), and the averages are corrected for their zero start.

Small batches are what training has anyway: each rank's share of a window before the reduce, or a micro-batch's
gradient where that exists by itself. The big one is the whole window. Norms must be of uncompressed gradients, before
any clip.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.core.check import check_decay
from tightgrad.core.errors import StateMismatchError
from tightgrad.core.types import Slot

Number = float | Tensor
NOISE_SCALE = Slot("noise_scale", across_ranks="equal", of_model=True, shape=(3,), dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class NoiseEstimate:
    """Holds one window's estimates: both unbiased, and either may be negative; NaN where the window has too few
    batches.

    Attributes:
        gradient_square: estimate of |G|^2, a float64 scalar.
        noise_trace: estimate of tr(S), a float64 scalar.
    """

    gradient_square: Tensor
    noise_trace: Tensor


def small_batch_mean(weighted_square_sum: Number, batch_sum: Number, count: Number) -> tuple[Tensor, Tensor]:
    """Average small batches i of size b_i with mean gradients g_i to one equivalent |g_b|^2 and b.

    The arguments add up over micro-batches and ranks, so they can ride along in one all-reduce.

    Args:
        weighted_square_sum: sum of b_i |g_i|^2.
        batch_sum: sum of b_i.
        count: number of small batches with b_i > 0.

    Returns:
        The weighted mean of |g_i|^2, and b = batch_sum / count: E(mean) = |G|^2 + tr(S) / b, for any sizes.
    """
    total = _scalar(batch_sum)
    return _scalar(weighted_square_sum) / total, total / _scalar(count)


def estimate_noise(small_square: Number, small_batch: Number, big_square: Number, big_batch: Number) -> NoiseEstimate:
    """Estimate |G|^2 and tr(S) from squared norms of mean gradients at two batch sizes.

    Args:
        small_square: |g_b|^2, best averaged over many small batches of the window; see `small_batch_mean`.
        small_batch: b, in the unit that the loss is a mean over: samples or tokens.
        big_square: |g_B|^2.
        big_batch: B, above b; otherwise (a window of one small batch) both estimates are NaN.
    """
    small, big = _scalar(small_batch), _scalar(big_batch)
    small_sq, big_sq = _scalar(small_square), _scalar(big_square)
    tells = (small > 0) & (small < big)
    gradient_square = (big * big_sq - small * small_sq) / (big - small)
    noise_trace = (small_sq - big_sq) / (1 / small - 1 / big)
    return NoiseEstimate(torch.where(tells, gradient_square, torch.nan), torch.where(tells, noise_trace, torch.nan))


@dataclass(frozen=True)
class NoiseScale:
    """Averages both estimates over steps. Holds settings only; the state is tensors that it returns anew.

    In a `Plan` it measures every window: each micro-batch on each rank is a small batch, so there must be several.

    Args:
        decay: decay of the averages, in [0, 1); they cover about 1 / (1 - decay) steps.

    Examples:
        >>> noise = NoiseScale(decay=0.9)
        >>> state = noise.initial()
        >>> for _ in range(3):
        ...     state = noise.updated(state, estimate_noise(3.0, 4, 1.5, 16))
        >>> float(noise.value(state))
        8.0
    """

    decay: float = 0.99

    slots: ClassVar[tuple[Slot, ...]] = (NOISE_SCALE,)

    def __post_init__(self) -> None:
        check_decay("decay", self.decay)

    def initial(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the state before the first step."""
        return {name: torch.zeros((), dtype=torch.float64, device=device) for name in _STATE}

    def updated(self, state: Mapping[str, Tensor], estimate: NoiseEstimate) -> dict[str, Tensor]:
        """Return the state after one more applied step. A window whose estimates are NaN or inf changes nothing.

        Raises:
            StateMismatchError: `state` is not one of this class.
        """
        _check_state(state)
        finite = torch.isfinite(estimate.gradient_square) & torch.isfinite(estimate.noise_trace)
        seen = {
            "gradient_square": estimate.gradient_square,
            "noise_trace": estimate.noise_trace,
            "weight": torch.ones_like(estimate.noise_trace),
        }
        return {
            name: torch.where(finite, self.decay * state[name] + (1 - self.decay) * seen[name], state[name])
            for name in _STATE
        }

    def averages(self, state: Mapping[str, Tensor]) -> NoiseEstimate:
        """Return the averaged estimates; NaN before the first step."""
        _check_state(state)
        return NoiseEstimate(state["gradient_square"] / state["weight"], state["noise_trace"] / state["weight"])

    def value(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the noise scale, in the unit of the batch sizes; NaN while the average of |G|^2 is not above 0."""
        mean = self.averages(state)
        return torch.where(mean.gradient_square > 0, mean.noise_trace / mean.gradient_square, torch.nan)

    def to_tensor(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the state as one float64 tensor."""
        _check_state(state)
        return torch.stack([state[name] for name in _STATE])

    def from_tensor(self, held: Tensor) -> dict[str, Tensor]:
        """Return the state that `to_tensor` gave a tensor for."""
        return dict(zip(_STATE, held.unbind(), strict=True))


_STATE = ("gradient_square", "noise_trace", "weight")


def _check_state(state: Mapping[str, Tensor]) -> None:
    if set(state) != set(_STATE):
        raise StateMismatchError(
            f"a noise scale remembers {', '.join(_STATE)}; the state has {', '.join(sorted(state)) or 'nothing'}."
        )


def _scalar(value: Number) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
