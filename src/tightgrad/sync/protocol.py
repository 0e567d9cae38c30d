"""What turns each rank's gradients into their sum over ranks: the one class that a step knows of."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import Collective, GradNorm, Observe, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, State


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """Holds what a window's gradients are summed with.

    Args:
        slots: what the methods remember from the steps before.
        step: number of applied steps.
        factor: gradients are multiplied by it before anything else: 1 / loss scale.
        idle: whether nothing will be delivered, since nothing in the window counts.
        observe: is told what was to be sent and what of it was; None at most steps.
    """

    slots: State
    step: int
    factor: float
    idle: bool = False
    observe: Observe | None = None

    def context(self, collective: Collective, seed: int, clock: StageClock) -> ReduceContext:
        """Return what a reducer may use in this window, among the ranks of `collective`."""
        rng = StepRng(seed, self.step, collective.rank)
        return ReduceContext(collective, rng, clock, observe=self.observe)


@dataclass(frozen=True, slots=True)
class Summed:
    """Holds what came of a window's gradients.

    Args:
        grads: sums over ranks of what any rank used; where they are not `finite`, this rank's own.
        slots: what the methods will remember, if the step is applied.
        finite: whether the gradients of all ranks were, or the guard does not ask.
        nonfinite: how many entries of this rank's gradients were inf or NaN, by name, where `grads` does not show it.
        relative_error: what compression left out, over all ranks; None where no fallback asks for it.
        fell_back: whether something was sent again, densely.
    """

    grads: Grads
    slots: State
    finite: bool = True
    nonfinite: Mapping[str, int] = field(default_factory=dict)
    relative_error: float | None = None
    fell_back: bool = False


class GradientSync(ABC):
    """Sums the gradients of one kind of wrapper over ranks: the wrapper does, or this after backward or during it."""

    commits_in_backward: ClassVar[bool] = False
    """Whether gradients are compressed and sent before the window's last backward has ended."""
    votes: ClassVar[bool] = True
    """Whether `sum` asks the other ranks, so that one that fails can tell them."""
    _facts: WindowFacts

    def connect(self) -> None:  # noqa: B027, not every sync needs groups of its own
        """Make the groups of ranks that are needed, once, after the adapter. Collective: every rank must call it."""

    def begin(self, facts: WindowFacts) -> None:
        """Begin a window, before its first forward."""
        self._facts = facts

    @abstractmethod
    def sum(self, grads: Grads, norm: GradNorm) -> Summed:
        """Return the sums over ranks of a window's gradients, unscaled. Collective: every rank must call it, or `fail`.

        Args:
            grads: this rank's after the last backward; tensors may be overwritten.
            norm: measures gradients, and remembers what it has measured.

        Raises:
            PayloadError: on every rank, when any could not decode what it received.
            RankMismatchError: on every rank, when they received different gradients, or were not at the same place.
            UsageError: on every rank, when the gradients of any are not those of one backward of each micro-batch.
        """

    @abstractmethod
    def sum_residuals(self, residuals: Grads) -> Grads:
        """Return the sums over ranks of what each has not sent yet, uncompressed, as gradients of their parameters.
        Collective: every rank must call it, between two windows.

        Args:
            residuals: this rank's, in the shapes that are remembered; left out where there is none.
        """

    def fail(self, why: str) -> None:
        """Take part in `sum` only to make it an error on the other ranks. Collective: every rank must call it, or that
        one. Under DistributedDataParallel without compression `sum` asks nobody: the others step, and stop at their
        next collective.

        Args:
            why: what they are told.
        """
        self.abandon()

    def cancel(self) -> None:  # noqa: B027, between two calls nothing is under way but where a thread sums
        """Wait for what is under way on this rank, and forget it."""

    def abandon(self) -> None:
        """Leave a window in its middle. Collective: every rank must call it."""
        self.cancel()
