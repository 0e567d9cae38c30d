"""How much of what a rank was to send it did send, and how well low-rank factors follow the gradient."""

import math
from collections.abc import Container, Mapping
from statistics import fmean

import torch
from torch import Tensor

from tightgrad.core.types import Grads

MEASURED_STEPS = 10
"""Steps from one measurement to the next: each reads the gradients once more."""


class Fidelity:
    """What a reducer was given beside what it transmitted, on this rank; and its factors before and after."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._overlaps: list[float] = []

    def clear(self) -> None:
        """Forget a window that was not finished."""
        self._sums = None
        self._overlaps = []

    def saw(self, given: Grads, transmitted: Mapping[str, Tensor]) -> None:
        """Take in one bucket."""
        for name, value in given.items():
            first, second = value.reshape(-1), transmitted[name].reshape(-1)
            sums = torch.stack([torch.dot(a, b) for a, b in ((first, second), (first, first), (second, second))])
            self._sums = sums.double() if self._sums is None else self._sums + sums

    def saw_factors(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], used: Container[str]) -> None:
        """Take in the factors, of independent columns, that a step started from and ended with, of what it used."""
        self._overlaps += [_overlap(before[n], factor) for n, factor in after.items() if n in before and n in used]

    def take_overlap(self) -> float | None:
        """The share of directions that factors kept in the last step, in [0, 1]; None if there were none before it."""
        overlaps, self._overlaps = self._overlaps, []
        return fmean(overlaps) if overlaps else None

    def take_cosine(self) -> float | None:
        """The cosine of the angle between what was given and what was transmitted, since the last call; None if
        nothing was seen, 0 if nothing was transmitted.
        """
        sums, self._sums = self._sums, None
        if sums is None:
            return None
        inner, given, transmitted = sums.tolist()
        size = math.sqrt(given * transmitted)
        return float(inner) / size if size > 0 else 0.0


def _overlap(before: Tensor, after: Tensor) -> float:
    """Mean squared cosine of the principal angles between the spans of two (n, r) factors."""
    first, second = torch.linalg.qr(before.float()).Q, torch.linalg.qr(after.float()).Q
    shared: Tensor = first.T @ second
    return float(shared.square().sum() / first.shape[1])
