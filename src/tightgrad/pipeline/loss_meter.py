"""The loss of a window, without waiting for the device before its end."""

from collections.abc import Mapping

from torch import Tensor


class LossMeter:
    """This rank's mean loss over the weight of its micro-batches; of several losses, the first.

    Args:
        name: of the loss.
        is_mean: whether losses are means over their micro-batch's weight, or sums.
    """

    def __init__(self, name: str, *, is_mean: bool) -> None:
        self._name = name
        self._is_mean = is_mean
        self.clear()

    def clear(self) -> None:
        """Forget the window."""
        self._total: Tensor | None = None
        self._weight = 0.0

    def saw(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Take in one micro-batch."""
        weight = weights[self._name]
        if weight == 0:
            return
        loss = losses[self._name].detach().float()
        term = loss * weight if self._is_mean else loss
        self._total = term if self._total is None else self._total + term
        self._weight += weight

    def take(self) -> float | None:
        """The mean, and forget; None for a window without weight on this rank."""
        mean = None if self._total is None else float(self._total) / self._weight
        self.clear()
        return mean
