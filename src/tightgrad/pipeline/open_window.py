"""A window that a checkpoint was taken in the middle of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tightgrad.accumulate import Window
from tightgrad.core.errors import StateMismatchError


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """What has been done of a window.

    Attributes:
        position: micro-batches whose backward has run.
        weights: of all micro-batches on this rank, for each loss.
        total_weights: over all ranks.
        grads: gradients that the wrapper or autograd holds, by parameter name.
        sums: float32 sums of low-precision gradients.
    """

    position: int
    weights: list[dict[str, float]]
    total_weights: dict[str, float]
    grads: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]

    @classmethod
    def of(cls, window: Window[Any], grads: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> "OpenWindow":
        """Take a window as it stands."""
        weights = [dict(row) for row in window.weights]
        return cls(window.backwards, weights, dict(window.total_weights), grads, sums)

    def check_is(self, window: Window[Any]) -> None:
        """Raise `StateMismatchError` unless `window` has the same weights as the saved one."""
        found = [dict(row) for row in window.weights]
        if found != self.weights or window.total_weights != self.total_weights:
            raise StateMismatchError(
                f"the checkpoint was taken after {self.position} micro-batches of a window with weights "
                f"{self.weights}, but the loader now starts with {found}; start it at the batch number "
                "`num_consumed` of the checkpoint, in the same order and on as many ranks."
            )
