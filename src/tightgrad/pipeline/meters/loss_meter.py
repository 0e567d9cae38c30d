"""The loss of a window, without waiting for the device before its end."""

from collections.abc import Mapping, Sequence
from operator import mul

import torch
from torch import Tensor

from tightgrad.accumulate.denominator import DenominatorCheck, Seen


class LossMeter:
    """Holds this rank's losses in one window; of several losses, the first.

    Args:
        name: of the loss.
        is_mean: whether losses are means over their micro-batch's weight, or sums.
        check: compares weights with what mean losses were averaged over.
    """

    def __init__(self, name: str, *, is_mean: bool, check: DenominatorCheck | None = None) -> None:
        self._name = name
        self._is_mean = is_mean
        self._check = check or DenominatorCheck()
        self._first: Seen | None = None
        self._losses: list[float | Tensor] = []
        self._weights: list[float] = []

    def add(self, losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        """Add one micro-batch to the window's."""
        weight = weights[self._name]
        if weight == 0:
            return
        loss = losses[self._name]
        if self._is_mean:
            self._first = self._check.compare(loss, weight, self._first)
        self._losses.append(loss.item() if loss.is_cpu else loss.detach().reshape(()).clone())
        self._weights.append(weight)

    def pop(self) -> float | None:
        """Return the mean over the weights, and forget it; None for a window without weight on this rank."""
        losses, weights = _numbers(self._losses), self._weights
        self._losses, self._weights = [], []
        if not losses:
            return None
        total = sum(map(mul, losses, weights)) if self._is_mean else sum(losses)
        return float(total / sum(weights))


def _numbers(losses: Sequence[float | Tensor]) -> list[float]:
    """Waits for the device once, if there is one."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    if tensors and len(tensors) == len(losses):
        numbers: list[float] = torch.stack(tensors).tolist()
        return numbers
    return [float(loss) for loss in losses]
