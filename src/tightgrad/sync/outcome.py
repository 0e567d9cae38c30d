"""What reduction during backward hands to the step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tightgrad.core.protocols import Observe
from tightgrad.core.types import Grads, State
from tightgrad.sync.fallback import ErrorMeter


@dataclass(frozen=True, slots=True)
class Outcome:
    """Holds what a backward left.

    Attributes:
        totals: sums over ranks, in the order of the parameters, of those that any rank used; None if the wrapper has
            put them into `parameter.grad`.
        slots: what the methods will remember, if the step is applied.
        finite: whether all gradients of all ranks were; if not, there are no totals.
        failures: what could not be decoded.
        nonfinite: entries of this rank that were inf or NaN, by name; None if `parameter.grad` still shows them.
        meter: what compression left out on this rank, or on all of them if a fallback was decided on; None if no
            fallback asks for it.
        fell_back: whether something was sent again, densely.
        unused: parameters that no rank used, where the wrapper has put zeros for them into `parameter.grad`.
    """

    totals: Grads | None
    slots: State
    finite: bool
    failures: tuple[str, ...]
    nonfinite: Mapping[str, int] | None = None
    meter: ErrorMeter | None = None
    fell_back: bool = False
    unused: frozenset[str] = frozenset()


class InBackward(Protocol):
    """Reduces gradients while a window's last backward goes on."""

    def open(
        self, slots: State, step: int, factor: float, *, idle: bool = False, observe: Observe | None = None
    ) -> None:
        """Begin the last backward of a window."""

    def finish(self) -> Outcome:
        """Wait for it. Collective: every rank must call it."""

    def drop(self) -> None:
        """Forget what is under way."""

    def abandon(self) -> None:
        """Drop the window. Collective: every rank must call it."""
