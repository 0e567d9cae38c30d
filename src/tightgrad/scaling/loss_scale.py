"""Dynamic loss scaling: multiply the loss by S, divide the gradients by S; halve S when they overflow.

    Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740.

S is a power of two by default, so that scaling and unscaling are exact. It changes only between windows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.core.check import check_integer, check_number
from tightgrad.core.errors import NonFiniteGradientError, StateMismatchError
from tightgrad.core.types import MODEL, Slot, State

LOSS_SCALE = Slot("loss_scale", across_ranks="equal", of_model=True, shape=(2,), dtype=torch.float64)


@dataclass(frozen=True)
class LossScale:
    """Multiplies the loss by a scale that adapts, so that float16 gradients do not vanish.

    Args:
        initial: first S, above 0.
        growth: factor on S after `growth_interval` applied steps in a row, at least 1.
        backoff: factor on S after an overflow, in (0, 1).
        growth_interval: applied steps in a row without overflow before S grows, at least 1.
        smallest: an overflow at this S or below raises instead of being skipped.
    """

    initial: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    growth_interval: int = 2000
    smallest: float = 2.0**-14

    slots: ClassVar[tuple[Slot, ...]] = (LOSS_SCALE,)

    def __post_init__(self) -> None:
        check_number("initial", self.initial, above=0.0)
        check_number("growth", self.growth, low=1.0)
        check_number("backoff", self.backoff, above=0.0, high=0.999)
        check_integer("growth_interval", self.growth_interval, low=1)
        check_number("smallest", self.smallest, above=0.0)

    def current(self, state: State) -> float:
        """Return the scale S of this window."""
        return self._read(state)[0]

    def after_applied(self, state: State) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the state after a step that was applied."""
        scale, good_steps = self._read(state)
        good_steps += 1
        if good_steps >= self.growth_interval:
            return _written(scale * self.growth, 0)
        return _written(scale, good_steps)

    def after_overflow(self, state: State) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the state after a step that was skipped.

        Raises:
            NonFiniteGradientError: S is at its smallest, so the gradients themselves are not finite.
        """
        scale, _ = self._read(state)
        if scale <= self.smallest:
            raise NonFiniteGradientError(
                f"gradients are not finite at a loss scale of {scale:g}, the smallest: it is not the scale that "
                "overflows. Lower the learning rate, clip, or look at the loss."
            )
        return _written(scale * self.backoff, 0)

    def _read(self, state: State) -> tuple[float, int]:
        if LOSS_SCALE.name not in state:
            return self.initial, 0
        scale, good_steps = state[LOSS_SCALE.name][MODEL].tolist()
        if not 0.0 < scale < math.inf or not 0.0 <= good_steps < math.inf:
            raise StateMismatchError(
                f"the loss scale in the state is {scale:g} after {good_steps:g} steps, which cannot be; was it edited?"
            )
        return scale, int(good_steps)


def _written(scale: float, good_steps: int) -> dict[str, dict[str, Tensor]]:
    return {LOSS_SCALE.name: {MODEL: torch.tensor([scale, good_steps], dtype=torch.float64, device="cpu")}}
