"""A window whose micro-batches are fetched one at a time, so that none waits in memory while another one runs.

N is then not known before the first backward. Ranks exchange the weights of their first batches, losses are scaled by
K times their sum, and the true N is exchanged when the last micro-batch has been fetched. Gradients are linear in
1 / N: those that were accumulated with another N are multiplied once, before anything is reduced or remembered
(`pipeline.normalisation`). Where all micro-batches weigh the same there is nothing to multiply.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tightgrad.accumulate.count import Count
from tightgrad.core.errors import UsageError

Batch = TypeVar("Batch")
Rows = Sequence[dict[str, float]]


@dataclass
class Fetched(Generic[Batch]):
    """What came from a loader.

    Attributes:
        batches: what came.
        weights: of each batch, for each loss.
        num_fetched: batches of the loader that they are made of.
        is_short: whether the loader has ended.
        failure: what went wrong.
    """

    batches: list[Batch] = field(default_factory=list)
    weights: list[dict[str, float]] = field(default_factory=list)
    num_fetched: int = 0
    is_short: bool = False
    failure: Exception | None = None


class Stream(Generic[Batch]):
    """The micro-batches of one window, each fetched when its turn comes, and what is known of N.

    Args:
        first: the first batch, or none.
        start: the count of all ranks' first batches.
        most: K.
        fetch: gives the next batch.
        count: begins the count of the whole window. Collective: every rank calls it once a window, if K > 1.
        spare: what a rank runs without weight where it has no batch of its own, so that a wrapper's collectives match;
            None if it goes without. Overwritten with the current batch.
        fails_at_once: whether other ranks would wait for this one before they count.

    Attributes:
        weights: of the micro-batches fetched so far.
    """

    def __init__(
        self,
        first: Fetched[Batch],
        start: Count,
        most: int,
        fetch: Callable[[], Fetched[Batch]],
        count: Callable[[Rows, Exception | None], Count],
        spare: list[Batch] | None,
        *,
        fails_at_once: bool,
    ) -> None:
        self.weights: list[dict[str, float]] = []
        self._start = start
        self._most = most
        self._fetch = fetch
        self._count = count
        self._spare = spare
        self._fails_at_once = fails_at_once
        self._current: list[Batch] = []
        self._num = most
        self._has_more = True
        self._failure: Exception | None = None
        self._end: Count | None = start if most == 1 else None
        self._take(first)

    def __len__(self) -> int:
        """K, or fewer once this rank's loader has ended."""
        return self._num

    def __getitem__(self, position: int) -> Batch:
        if position != len(self.weights) - 1:
            raise UsageError(
                f'micro-batch {position} is not there: with fetch="batch" a window holds the current one only, which '
                f"is number {len(self.weights) - 1}."
            )
        return self._current[0]

    def __iter__(self) -> Iterator[Batch]:
        """The current one."""
        return iter(self._current)

    def reach(self, position: int) -> bool:
        """Fetch up to this micro-batch; say whether there is one.

        Raises:
            Exception: what the loader raised, here or on another rank, where no rank has this window.
        """
        while len(self.weights) <= position and len(self.weights) < self._num:
            self._take(self._fetch() if self._has_more else Fetched())
        return position < len(self.weights)

    def _take(self, fetched: Fetched[Batch]) -> None:
        self._has_more = self._has_more and not fetched.is_short and fetched.failure is None
        self._failure = self._failure or fetched.failure
        if fetched.batches:
            self._current[:] = fetched.batches
            self.weights += fetched.weights
            if self._spare is not None:
                self._spare[:] = fetched.batches
        elif self._spare is not None:
            self._current[:] = self._spare
            self.weights.append(dict.fromkeys(self._start.losses, 0.0))
        else:
            self._num = len(self.weights)
            if self._failure is not None:
                raise self._failure if self._fails_at_once else self._error()
        if self._end is None and len(self.weights) == self._most:
            self._end = self._count(self.weights, self._failure)

    def _error(self) -> Exception:
        """This rank's failure, or that of another, when all know of it."""
        try:
            _ = self.total_weights
        except Exception as error:
            return error
        raise AssertionError("a failed rank's count raises")

    @property
    def is_counted(self) -> bool:
        """Whether the whole window is being counted, so that `total_weights` will not change."""
        return self._end is not None

    @property
    def expected_weights(self) -> dict[str, float]:
        """The N that losses are scaled by before the true one is known: the same on every rank, above 0."""
        total = self._start.total_weights
        ranks = len(self._start.num_batches)
        return {name: self._most * (weight or float(ranks)) for name, weight in total.items()}

    @property
    def total_weights(self) -> dict[str, float]:
        """N for each loss; the expected one as long as this rank has batches to fetch."""
        if self._end is None:
            if len(self.weights) < self._num:
                return self.expected_weights
            self._end = self._count(self.weights, self._failure)
        return self._end.total_weights

    def close(self) -> None:
        """Count what there is, and wait for it. Collective: every rank must call it."""
        if self._end is None:
            self._end = self._count(self.weights, self._failure)
        self.settle()

    def settle(self) -> None:
        """Leave nothing under way; what went wrong is raised by the next look."""
        for count in (self._start, self._end):
            if count is not None:
                with suppress(Exception):
                    count.settle()
