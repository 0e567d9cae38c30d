"""What reduction during backward hands to the step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tightgrad.core.types import Grads, State


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a backward left.

    Attributes:
        totals: sums over ranks, in the order of the parameters, of those that any rank used; None if the wrapper has
            put them into `parameter.grad`.
        slots: what the methods will remember, if the step is applied.
        finite: whether all gradients of all ranks were; if not, there are no totals.
        failures: what could not be decoded.
        nonfinite: entries of this rank that were inf or NaN, by name; None if `parameter.grad` still shows them.
    """

    totals: Grads | None
    slots: State
    finite: bool
    failures: tuple[str, ...]
    nonfinite: Mapping[str, int] | None = field(default=None)


class InBackward(Protocol):
    """Reduction while a window's last backward goes on."""

    def open(self, slots: State, step: int, factor: float, *, idle: bool = False) -> None:
        """Begin a window."""

    def finish(self) -> Outcome:
        """Wait for it. Collective: every rank must call it."""

    def drop(self) -> None:
        """Forget what is under way."""

    def abandon(self) -> None:
        """Drop the window. Collective: every rank must call it."""
