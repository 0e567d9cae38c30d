"""A window: the micro-batches of one optimizer step, fetched and weighed before the first backward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, Protocol, TypeVar

from tightgrad.core.errors import TightGradError, UsageError

Batch = TypeVar("Batch")
Held = Callable[[int, int], AbstractContextManager[None]]


class Totals(Protocol):
    """What a window knows of the other ranks; a look may wait for them."""

    @property
    def total_weights(self) -> Mapping[str, float]:
        """N for each loss."""


class Window(Generic[Batch]):
    """One optimizer step's micro-batches on this rank. Iterate once over the user's own batches.

    Attributes:
        batches: this rank's micro-batches. When this rank's loader ended before another's there are fewer, or none;
            under a wrapper that reduces by itself, the last batch is repeated with weight 0 instead.
        weights: for each micro-batch, what it counts for each loss.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        weights: Sequence[Mapping[str, float]],
        totals: Totals,
        held: Held,
    ) -> None:
        self.batches = tuple(batches)
        self.weights = tuple(weights)
        self._totals = totals
        self._total_weights: dict[str, float] | None = None
        self.backwards = 0
        self._position = -1
        self._held = held

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def total_weights(self) -> dict[str, float]:
        """N for each loss: the weight of all micro-batches on all ranks. The first look may wait for the other ranks.

        Raises:
            UsageError: another rank failed while fetching, so that there is no window.
            CommunicationError: another rank cannot be reached.
        """
        if self._total_weights is None:
            self._total_weights = dict(self._totals.total_weights)
        return self._total_weights

    @property
    def is_everywhere(self) -> bool:
        """Whether the other ranks have this window as well; waits for them."""
        try:
            return bool(self.total_weights)
        except TightGradError:
            return False

    @property
    def total_weight(self) -> float:
        """N of the first loss."""
        return next(iter(self.total_weights.values()))

    @property
    def local_share(self) -> float:
        """This rank's part of N, for the first loss."""
        name, total = next(iter(self.total_weights.items()))
        return sum(weights[name] for weights in self.weights) / total if total else 0.0

    @property
    def counts_for_nothing(self) -> bool:
        """Whether no micro-batch on any rank has any weight."""
        return not any(any(row.values()) for row in self.weights) and not any(self.total_weights.values())

    def start_at(self, position: int) -> None:
        """Take the first `position` micro-batches as done: their gradients come from a checkpoint."""
        self.backwards = position

    def __iter__(self) -> Iterator[Batch]:
        if self._position >= 0:
            raise UsageError("a window can be iterated once; its micro-batches belong to one optimizer step.")
        for position in range(self.backwards, len(self)):
            self._position = position
            with self._held(position, len(self.batches)):
                yield self.batches[position]

    @contextmanager
    def micro_batch(self, position: int) -> Iterator[Batch]:
        """Hold one micro-batch, around its forward and backward: what iterating does for each in turn.

        For loops that someone else runs; positions must be taken in order.
        """
        self._position = position
        with self._held(position, len(self)):
            yield self.batches[position]

    def take_weights(self) -> Mapping[str, float]:
        """Return the current micro-batch's weights; to be called once for each, by `backward`.

        Raises:
            UsageError: no micro-batch is current, or its backward ran before.
        """
        if self._position < 0:
            raise UsageError("backward() came before the window's first batch; call it inside `for batch in window:`.")
        if self.backwards > self._position:
            raise UsageError(
                f"backward() ran twice for micro-batch {self._position} of {len(self)}; add the losses and call it "
                "once."
            )
        if self.backwards < self._position:
            raise UsageError(f"backward() was not called for micro-batch {self.backwards} of {len(self)}.")
        self.backwards += 1
        return self.weights[self._position]

    def check_complete(self) -> None:
        """Raise `UsageError` unless backward ran for every micro-batch."""
        if self.backwards != len(self):
            raise UsageError(
                f"step() came after {self.backwards} of the window's {len(self)} micro-batches; every batch of "
                "`for batch in window:` needs one pipe.backward(loss), because the weights of all were counted."
            )
