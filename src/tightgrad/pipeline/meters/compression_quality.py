"""How much of what a rank was to send it did send, and how well low-rank factors follow the gradient."""

import math
from collections.abc import Container, Mapping
from statistics import fmean

import torch
from torch import Tensor

from tightgrad.core.protocols import Observe, Reducer
from tightgrad.core.types import Grads, Slot, State, slots_with

MEASURED_STEPS = 10
"""Steps from one measurement to the next: each reads the gradients once more."""


class CompressionQuality:
    """Compares, in one step and on this rank, what was to be sent with what was, and factors before and after.

    Args:
        step: number of applied steps; only some steps are measured.
        reducer: of the plan; one that leaves nothing is not measured.
    """

    def __init__(self, step: int, reducer: Reducer) -> None:
        self._is_measured = step % MEASURED_STEPS == 0 and not reducer.leaves_nothing
        self._sums: Tensor | None = None
        self._overlaps: list[float] = []

    @property
    def observe(self) -> Observe | None:
        """Return what is to be shown each bucket; None at steps that are not measured."""
        return self.add if self._is_measured else None

    def add(self, given: Grads, transmitted: Mapping[str, Tensor]) -> None:
        """Add one bucket: what a reducer was given, and what of it was transmitted."""
        for name, value in given.items():
            first, second = value.reshape(-1), transmitted[name].reshape(-1)
            sums = torch.stack([torch.dot(a, b) for a, b in ((first, second), (first, first), (second, second))])
            self._sums = sums.double() if self._sums is None else self._sums + sums

    def add_factors(self, before: State, after: State, slots: Mapping[str, Slot], used: Container[str]) -> None:
        """Add the factors, of independent columns, that a step started from and ended with, of what it used."""
        if not self._is_measured:
            return
        for slot in slots_with("factors", slots):
            first = before.get(slot.name, {})
            last = after.get(slot.name, {})
            self._overlaps += [_overlap(first[n], factor) for n, factor in last.items() if n in first and n in used]

    @property
    def overlap(self) -> float | None:
        """Return the share of directions that factors kept, in [0, 1]; None if there were none before."""
        return fmean(self._overlaps) if self._overlaps else None

    @property
    def cosine(self) -> float | None:
        """Return the cosine of the angle between what was given and what was transmitted; None if nothing was seen, 0
        if nothing was transmitted.
        """
        if self._sums is None:
            return None
        inner, given, transmitted = self._sums.tolist()
        size = math.sqrt(given * transmitted)
        return float(inner) / size if size > 0 else 0.0


def _overlap(before: Tensor, after: Tensor) -> float:
    """Mean squared cosine of the principal angles between the spans of two (n, r) factors."""
    first, second = torch.linalg.qr(before.float()).Q, torch.linalg.qr(after.float()).Q
    shared: Tensor = first.T @ second
    return float(shared.square().sum() / first.shape[1])
