"""The loss of a window, without waiting for the device before its end."""

from collections.abc import Mapping, Sequence
from math import inf
from operator import mul

import torch
from torch import Tensor

from tightgrad.accumulate.denominator import DenominatorCheck, Seen
from tightgrad.core.protocols import Collective


class LossMeter:
    """Holds this rank's losses in one window.

    Args:
        name: of the loss that `pop` gives.
        is_mean: whether losses are means over their micro-batch's weight, or sums.
        check: compares weights with what mean losses were averaged over.
    """

    def __init__(self, name: str, *, is_mean: bool, check: DenominatorCheck | None = None) -> None:
        self._name = name
        self._is_mean = is_mean
        self._check = check or DenominatorCheck()
        self._first: Seen | None = None
        self._seen: dict[str, list[tuple[float | Tensor, float]]] = {}

    def add(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], totals: Mapping[str, float] | None = None
    ) -> None:
        """Add one micro-batch to the window's, which weighs `totals` on all ranks."""
        for name, loss in losses.items():
            weight = weights[name]
            if weight == 0:
                continue
            total = (totals or {}).get(name, inf)
            if self._is_mean and name == self._name:
                self._first = self._check.compare(loss, weight, self._first, total=total)
            elif name == self._name:
                self._check.look_at_sum(loss, weight, total=total)
            seen = loss.item() if loss.is_cpu else loss.detach().reshape(()).clone()
            self._seen.setdefault(name, []).append((seen, weight))

    def mean_over(self, ranks: Collective, names: Sequence[str]) -> Tensor:
        """Return the sum of these losses, each the mean over its weight on all ranks: what the window's gradient is the
        gradient of. Collective: every rank must call it.
        """
        sums = torch.tensor([self._sums(name) for name in names], dtype=torch.float64, device="cpu").to(
            ranks.control_device
        )
        total, weight = ranks.all_reduce_(sums, "sum").unbind(1)
        return torch.where(weight > 0, total / weight, 0.0).sum()

    def seen(self) -> dict[str, list[tuple[float, float]]]:
        """Return losses and weights of the window so far, by name. Waits for the device."""
        return {name: [(float(loss), weight) for loss, weight in pairs] for name, pairs in self._seen.items()}

    def see_again(self, seen: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Take up what `seen` gave."""
        self._seen = {name: list(pairs) for name, pairs in seen.items()}

    def pop(self) -> float | None:
        """Return the mean over the weights, and forget it; None for a window without weight on this rank."""
        total, weight = self._sums(self._name)
        self._seen = {}
        return total / weight if weight else None

    def _sums(self, name: str) -> tuple[float, float]:
        """The loss times its weight, and the weight, over this rank's micro-batches."""
        seen = self._seen.get(name, [])
        losses, weights = _numbers([loss for loss, _ in seen]), [weight for _, weight in seen]
        return float(sum(map(mul, losses, weights)) if self._is_mean else sum(losses)), float(sum(weights))


def _numbers(losses: Sequence[float | Tensor]) -> list[float]:
    """Waits for the device once, if there is one."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    if tensors and len(tensors) == len(losses):
        numbers: list[float] = torch.stack(tensors).tolist()
        return numbers
    return [float(loss) for loss in losses]
