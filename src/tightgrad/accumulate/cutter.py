"""Cuts a loader into windows, in step with the other ranks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from tightgrad.accumulate.count import Count
from tightgrad.accumulate.settings import Accumulate
from tightgrad.accumulate.split import split_batch
from tightgrad.accumulate.weights import Weight, batch_weights
from tightgrad.accumulate.window import Held, Window
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Collective

Batch = TypeVar("Batch")
Short = Literal["fewer", "repeat"]


@dataclass
class _Fetched(Generic[Batch]):
    batches: list[Batch] = field(default_factory=list)
    weights: list[dict[str, float]] = field(default_factory=list)
    num_fetched: int = 0
    is_short: bool = False
    failure: Exception | None = None


class WindowCutter(Generic[Batch]):
    """Fetches, weighs and counts one window after the other.

    Args:
        settings: how many micro-batches make a window.
        weight: what a batch counts.
        collective: the data-parallel ranks.
        held: context around each micro-batch.
        when_short: what a rank with fewer micro-batches than another does: go without ("fewer"), or repeat its last
            batch with weight 0, so that a wrapper's collectives match ("repeat").
        waits_in_forward: says whether ranks wait for each other before a window's first backward anyway. Then the
            count is waited for first, since a rank that failed while fetching would not come.
    """

    def __init__(
        self,
        settings: Accumulate,
        weight: Weight,
        collective: Collective,
        held: Held,
        when_short: Short,
        waits_in_forward: Callable[[], bool],
    ) -> None:
        self.settings = settings
        self.carried: list[Batch] = []
        self.num_consumed = 0
        self.num_consumed_before = 0
        self._weight = weight
        self._collective = collective
        self._held = held
        self._when_short = when_short
        self._waits_in_forward = waits_in_forward
        self._last: list[Batch] = []
        self._num_windows = 0

    def cut(self, loader: Iterable[Batch], step: Callable[[], int]) -> Iterator[Window[Batch]]:
        """Yield windows until every rank's loader has ended. Collective: every rank must iterate.

        Args:
            loader: batches, of unknown number.
            step: gives the number of applied steps, which schedules go by.

        Raises:
            ConfigError: a weight is negative or not finite, on this rank.
            UsageError: another rank failed while fetching its batches; perhaps not here but from the window, where its
                total weight is looked at first.
        """
        carried, self.carried = self.carried, []
        batches = _chain(carried, loader)
        while True:
            at_step = step()
            fetched = self._fetch(batches, at_step)
            count = Count(fetched.weights, self.settings.losses, fetched.is_short, fetched.failure, self._collective)
            if not self._knows_its_part(fetched, at_step):
                if not any(count.num_batches) or (count.all_short and self._put_aside(fetched)):
                    return
                if self._when_short == "repeat":
                    self._repeat(fetched, count.num_batches)
            self.num_consumed_before = self.num_consumed
            self.num_consumed += fetched.num_fetched
            self._last = fetched.batches[-1:] or self._last
            self._num_windows += 1
            try:
                yield Window(fetched.batches, fetched.weights, count, self._held)
            finally:
                count.settle()

    def _knows_its_part(self, fetched: _Fetched[Batch], step: int) -> bool:
        """Whether this rank does the same with its window whatever the other ranks have."""
        if self._waits_in_forward() or fetched.failure is not None or fetched.is_short:
            return False
        if self._when_short == "repeat":
            is_full = len(fetched.batches) == self.settings.micro_batches_at(step)
            if not is_full or self._num_windows == 0:  # the first window shows whether a rank has nothing to repeat
                return False
        return any(weight > 0 for row in fetched.weights for weight in row.values())

    def take_back(self) -> None:
        """Count the last window as never cut: another rank failed while fetching its own."""
        self.num_consumed = self.num_consumed_before
        self._num_windows -= 1

    def _fetch(self, batches: Iterator[Batch], step: int) -> _Fetched[Batch]:
        fetched = _Fetched[Batch]()
        try:
            if self.settings.source == "split":
                self._fetch_split(fetched, batches, step)
            else:
                self._fetch_many(fetched, batches, step)
        except Exception as error:
            fetched.failure = error
        return fetched

    def _fetch_split(self, fetched: _Fetched[Batch], batches: Iterator[Batch], step: int) -> None:
        for batch in batches:
            fetched.num_fetched = 1
            fetched.batches = split_batch(batch, self.settings.micro_batches_at(step) or 1)
            fetched.weights = [self.weigh(piece) for piece in fetched.batches]
            return
        fetched.is_short = True

    def _fetch_many(self, fetched: _Fetched[Batch], batches: Iterator[Batch], step: int) -> None:
        most = self.settings.micro_batches_at(step)
        weight = self.settings.window_weight_at(step)
        share = None if weight is None else weight / self._collective.world_size
        first = self.settings.losses[0]
        while len(fetched.batches) != most and (share is None or sum(w[first] for w in fetched.weights) < share):
            try:
                batch = next(batches)
            except StopIteration:
                fetched.is_short = True
                return
            fetched.batches.append(batch)
            fetched.weights.append(self.weigh(batch))
            fetched.num_fetched += 1

    def weigh(self, batch: Any) -> dict[str, float]:
        """What a batch counts for each loss."""
        return batch_weights(batch, self._weight, self.settings.losses)

    def _put_aside(self, fetched: _Fetched[Batch]) -> bool:
        """Keep or drop the last window, where the policy says so."""
        self.carried = fetched.batches if self.settings.partial == "carry" else []
        return self.settings.partial != "flush"

    def _repeat(self, fetched: _Fetched[Batch], num_batches: list[int]) -> None:
        missing = max(num_batches) - len(fetched.batches)
        source = fetched.batches[-1:] or self._last
        empty = [rank for rank, number in enumerate(num_batches) if not number]
        if empty and self._num_windows == 0:
            raise UsageError(
                f"rank {', '.join(map(str, empty))} has no batch at all, but its wrapper needs one to take part in "
                "the other ranks' backward; give every rank at least one batch."
            )
        fetched.batches = fetched.batches + source * missing
        fetched.weights = fetched.weights + [dict.fromkeys(self.settings.losses, 0.0)] * missing


def _chain(first: list[Batch], then: Iterable[Batch]) -> Iterator[Batch]:
    """One after the other; a loader that cannot even start fails when its first batch is fetched."""
    yield from first
    yield from then
