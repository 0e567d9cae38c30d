"""Micro-batches of a window that are fetched one at a time, so that none waits in memory while another one runs.

N is then not known before the first backward. Ranks exchange the weights of their first batches, losses are scaled by
K times their sum, and the true N is exchanged when the last micro-batch has been fetched. Gradients are linear in
1 / N: those that were accumulated with another N are multiplied once, before anything is reduced or remembered
(`Step` in `pipeline/step.py`). In a full window of equal micro-batches there is nothing to multiply.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from tightgrad.accumulate.count import Count, WindowLeftError
from tightgrad.accumulate.fetched import Fetched
from tightgrad.accumulate.split import repeated
from tightgrad.core.errors import UsageError

Batch = TypeVar("Batch")
Rows = Sequence[Mapping[str, float]]


class Streamed(Generic[Batch]):
    """Holds the current micro-batch of a window; each is fetched when its turn comes.

    Args:
        first: the first batch, or none, with the count of all ranks' first batches, which tells of its failure.
        most: K.
        fetch: gives the next batch.
        count: begins the count of the whole window. Collective: every rank calls it once a window, if K > 1 and no rank
            failed at its first batch.
        spare: what a rank runs without weight where it has no batch of its own, so that a wrapper's collectives match;
            None if it goes without. Overwritten with the current batch.

    Attributes:
        weights: of the micro-batches fetched so far.
        failure: what the loader raised here, perhaps not yet known to the other ranks.
        is_counted: whether `wait_for_total` has given the true N.
    """

    def __init__(
        self,
        first: Fetched[Batch],
        most: int,
        fetch: Callable[[], Fetched[Batch]],
        count: Callable[[Rows, Exception | None], Count],
        spare: list[Batch] | None,
    ) -> None:
        self.weights: list[dict[str, float]] = []
        self.failure: Exception | None = None
        self.is_counted = False
        self._start = first.count
        self._end: Count | None = first.count if most == 1 else None
        self._most, self._fetch, self._count, self._spare = most, fetch, count, spare
        self._current: list[Batch] = []
        self._num = most
        self._has_more = True
        self._add(first)

    @property
    def written_on_some(self) -> bool:
        """Tell whether only some ranks had written to weights when the window was counted."""
        return self._count_all().wait().written_on_some

    def __len__(self) -> int:
        """Return K, or fewer once this rank's loader has ended."""
        return self._num

    def __getitem__(self, position: int) -> Batch:
        current = len(self.weights) - 1
        if position != current or not self._current:
            there = f"the current one only, which is number {current}" if self._current else "none: this rank has none"
            raise UsageError(
                f'micro-batch {position} is not there; with fetch="batch" a window holds {there}. Take '
                'Accumulate(fetch="window").'
            )
        return self._current[0]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._current)

    def reach(self, position: int) -> bool:
        """Get batches up to this micro-batch; tell whether there is one.

        Raises:
            Exception: what the loader raised, if no other rank waits for this one in a forward or backward.
            UsageError: the same, another rank's loader failed.
        """
        while len(self.weights) <= position and len(self.weights) < self._num:
            self._add(self._fetch() if self._has_more else Fetched())
        is_there = position < len(self.weights)
        if not is_there or len(self.weights) == self._num:
            self._count_all()
        if self.failure is not None and self._spare is None:
            self.wait_for_total()  # raises it, when all ranks know
        return is_there

    def _add(self, fetched: Fetched[Batch]) -> None:
        self._has_more = self._has_more and not fetched.is_short and fetched.failure is None
        self.failure = self.failure or fetched.failure
        if fetched.batches:
            self._current[:] = fetched.batches
            self.weights += fetched.weights
            if self._spare is not None:
                self._spare[:] = fetched.batches
        elif self._spare is not None:
            self._current[:] = [repeated(batch) for batch in self._spare]
            self.weights.append(dict.fromkeys(self._start.losses, 0.0))
        else:
            self._num = len(self.weights)

    def _count_all(self, failure: Exception | None = None) -> Count:
        """Begin the count of the whole window, once; not if no rank has it, since a rank failed at its first batch."""
        if self._end is None:
            self._start.wait()
            self._end = self._count(self.weights, self.failure or failure)
        return self._end

    def wait_for_expected(self) -> dict[str, float]:
        """Return the N that losses are scaled by before the true one is known: the same on every rank, above 0."""
        start = self._start.wait()
        ranks = len(start.num_batches)
        return {name: self._most * (weight or float(ranks)) for name, weight in start.total_weights.items()}

    def wait_for_total(self) -> dict[str, float]:
        """Return N for each loss; the expected one as long as this rank has batches to fetch."""
        if self._end is None and len(self.weights) < self._num:
            return self.wait_for_expected()
        totals = self._count_all().wait().total_weights
        self.is_counted = True
        return totals

    def close(self) -> None:
        """Tell the other ranks that this one leaves, and wait for them. Collective: every rank must call it."""
        with suppress(Exception):
            self._count_all(WindowLeftError("this rank has left the window by abandon()."))
        self.settle()

    def settle(self) -> None:
        """Leave nothing under way; what went wrong is raised by what waits next."""
        self._start.settle()
        if self._end is not None:
            self._end.settle()
