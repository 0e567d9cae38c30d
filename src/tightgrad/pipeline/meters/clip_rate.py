"""How often gradients are clipped, and one line in the log when that says that the bound is wrong."""

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("tightgrad")

RECENT_STEPS = 100
NEARLY_ALL = 0.95
NEVER_STEPS = 1000


class ClipRate:
    """Counts clipped steps. Logs a warning at most once for each of the two ways to be wrong.

    Args:
        speaks: whether this rank logs.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self._speaks = speaks
        self._recent: deque[bool] = deque(maxlen=RECENT_STEPS)
        self._steps = 0
        self._clipped_steps = 0
        self._said: set[str] = set()

    @property
    def rate(self) -> float | None:
        """Return the share of the last applied steps (at most 100) that were clipped; None before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted, as plain numbers."""
        return {"recent": list(self._recent), "steps": self._steps, "clipped": self._clipped_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the counts that `state_dict` gave."""
        self._recent = deque(state["recent"], maxlen=RECENT_STEPS)
        self._steps, self._clipped_steps = state["steps"], state["clipped"]

    def add(self, clip_coef: float) -> None:
        """Count one applied step, clipped or not."""
        self._recent.append(clip_coef < 1.0)
        self._steps += 1
        self._clipped_steps += clip_coef < 1.0
        if self._steps >= RECENT_STEPS and sum(self._recent) >= NEARLY_ALL * RECENT_STEPS:
            self._say_once(
                "always",
                f"{sum(self._recent)} of the last {RECENT_STEPS} steps were clipped: the bound, not the gradient, sets "
                "the length of the steps. Raise the bound, or lower the learning rate.",
            )
        if self._steps >= NEVER_STEPS and not self._clipped_steps:
            self._say_once(
                "never", f"none of {NEVER_STEPS} steps was clipped: the bound may be too high to protect anything."
            )

    def _say_once(self, problem: str, message: str) -> None:
        if self._speaks and problem not in self._said:
            self._said.add(problem)
            logger.warning(message)
