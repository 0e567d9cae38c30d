"""Where the loss scale S of a window comes from: the plan's own `LossScale`, or a torch `GradScaler`.

Either way the loss is multiplied by S before backward, and the gradients are divided by it exactly once: after they
have been accumulated, before the codec, and before any norm. S changes only between windows.
"""

import math
from collections.abc import Mapping

from torch import Tensor
from torch.amp import GradScaler

from tightgrad.core.errors import ConfigError, IncompatiblePlanError
from tightgrad.core.types import State
from tightgrad.plan.plan import Plan
from tightgrad.scaling.loss_scale import LossScale


class TorchScaling:
    """A `GradScaler` that the user made, and saves and restores: S lives in it. Grows and shrinks as torch's does.

    Departs from torch: a scale that has shrunk to `LossScale.smallest` and still overflows is an error.

    Args:
        scaler: enabled. Its `scale`, `unscale_`, `step` and `update` are errors for anyone else.
    """

    def __init__(self, scaler: GradScaler) -> None:
        self.scaler = scaler

    def current(self, state: State) -> float:
        """Return the scale S of this window. Waits for the device."""
        return float(self.scaler.get_scale())

    def after_applied(self, state: State) -> Mapping[str, Mapping[str, Tensor]]:
        """Count a good step in the scaler."""
        held = self.scaler.state_dict()
        good_steps = int(held["_growth_tracker"]) + 1
        if good_steps < held["growth_interval"]:
            self._write(held["scale"], good_steps)
        else:
            grown = held["scale"] * held["growth_factor"]
            self._write(grown if math.isfinite(grown) else held["scale"], 0)
        return {}

    def after_overflow(self, state: State) -> Mapping[str, Mapping[str, Tensor]]:
        """Shrink the scaler's scale.

        Raises:
            NonFiniteGradientError: it is at its smallest, so the gradients themselves are not finite.
        """
        held = self.scaler.state_dict()
        LossScale(initial=held["scale"]).after_overflow({})
        self._write(held["scale"] * held["backoff_factor"], 0)
        return {}

    def _write(self, scale: float, good_steps: int) -> None:
        self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale, "_growth_tracker": good_steps})


LossScaling = LossScale | TorchScaling
"""What gives the scale of a window, and learns from its step."""


def loss_scaling(plan: Plan, scaler: GradScaler | None) -> LossScaling | None:
    """Return the plan's or the scaler's loss scaling; None without either, and for a scaler that is not enabled.

    Raises:
        ConfigError: `scaler` is no GradScaler.
        IncompatiblePlanError: both are given, or the plan's guard hides the overflows that a scale learns from.
    """
    given: object = scaler
    if given is not None and not isinstance(given, GradScaler):
        raise ConfigError(f"scaler={given!r} must be a torch.amp.GradScaler or None.")
    if scaler is None or not scaler.is_enabled():
        return plan.loss_scale
    if plan.loss_scale is not None:
        raise IncompatiblePlanError(
            "the plan has a loss_scale and attach() a scaler: the loss would be scaled twice; drop one of them."
        )
    policy = plan.guard.on_nonfinite if plan.guard is not None else "raise"
    if policy in ("zero", "propagate"):
        raise IncompatiblePlanError(
            f'a GradScaler learns from overflows, which on_nonfinite="{policy}" hides; use "raise" or "skip".'
        )
    return TorchScaling(scaler)
