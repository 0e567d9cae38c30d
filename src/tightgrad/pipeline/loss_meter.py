"""The loss of a window, without waiting for the device before its end."""

from collections.abc import Mapping, Sequence
from operator import mul

import torch
from torch import Tensor

from tightgrad.accumulate.denominator import DenominatorCheck


class LossMeter:
    """This rank's mean loss over the weight of its micro-batches; of several losses, the first.

    Args:
        name: of the loss.
        is_mean: whether losses are means over their micro-batch's weight, or sums.
    """

    def __init__(self, name: str, *, is_mean: bool) -> None:
        self._name = name
        self._is_mean = is_mean
        self._check = DenominatorCheck()
        self.clear()

    def clear(self) -> None:
        """Forget the losses of the window."""
        self._check.clear()
        self._losses: list[float | Tensor] = []
        self._weights: list[float] = []

    def saw(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Take in one micro-batch."""
        weight = weights[self._name]
        if weight == 0:
            return
        loss = losses[self._name]
        if self._is_mean:
            self._check.saw(loss, weight)
        self._losses.append(loss.item() if loss.is_cpu else loss.detach().reshape(()).clone())
        self._weights.append(weight)

    def take(self) -> float | None:
        """The mean, and forget; None for a window without weight on this rank."""
        if not self._losses:
            return None
        losses, weights = _numbers(self._losses), self._weights
        self.clear()
        total = sum(map(mul, losses, weights)) if self._is_mean else sum(losses)
        return float(total / sum(weights))


def _numbers(losses: Sequence[float | Tensor]) -> list[float]:
    """Waits for the device once, if there is one."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    if len(tensors) == len(losses):
        numbers: list[float] = torch.stack(tensors).tolist()
        return numbers
    return [float(loss) for loss in losses]
