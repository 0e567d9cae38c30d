"""Cuts a loader into windows, in step with the other ranks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar

from tightgrad.accumulate.count import Count
from tightgrad.accumulate.settings import Accumulate
from tightgrad.accumulate.split import batch_size, split_batch
from tightgrad.accumulate.stream import Fetched, Rows, Stream
from tightgrad.accumulate.weights import Weight, batch_weights
from tightgrad.accumulate.window import Held, Together, Window
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Collective

Batch = TypeVar("Batch")
Short = Literal["fewer", "repeat"]


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
        self._loader_failure: Exception | None = None
        self._streams = settings.fetch == "batch"
        self._num_windows = 0

    def cut(self, loader: Iterable[Batch], step: Callable[[], int]) -> Iterator[Window[Batch]]:
        """Yield windows until every rank's loader has ended. Collective: every rank must iterate.

        Args:
            loader: batches, of unknown number.
            step: gives the number of applied steps, which schedules go by.

        Raises:
            ConfigError: a weight is negative or not finite, on this rank.
            UsageError: another rank failed while fetching its batches; perhaps not here but from the window, where its
                total weight is looked at.
        """
        carried, self.carried = self.carried, []
        self._loader_failure = None
        batches = _chain(carried, loader)
        window = self._next(batches, step())
        while window is not None:
            self._num_windows += 1
            try:
                yield window
            finally:
                window.settle()
            window = self._next(batches, step())

    def _next(self, batches: Iterator[Batch], step: int) -> Window[Batch] | None:
        return self._streamed(batches, step) if self._streams else self._fetched(batches, step)

    def _fetched(self, loader: Iterator[Batch], step: int) -> Window[Batch] | None:
        """A window whose batches are all there; None if no rank has one."""
        fetched = self._fetch(loader, step)
        count = self._count(fetched.weights, fetched.failure, is_short=fetched.is_short)
        if not self._knows_its_part(fetched, self.settings.micro_batches_at(step)):
            if not any(count.num_batches) or (count.all_short and self._put_aside(fetched)):
                return None
            if self._when_short == "repeat":
                self._repeat(fetched, count.num_batches)
        self.num_consumed_before = self.num_consumed
        self.num_consumed += fetched.num_fetched
        self._last = fetched.batches[-1:] or self._last
        batches = Together(fetched.batches)
        batches.hand_out = fetched.waiting.hand_out
        return Window(batches, tuple(fetched.weights), count, self._held)

    def _streamed(self, batches: Iterator[Batch], step: int) -> Window[Batch] | None:
        """A window whose batches are fetched in their turn; None if no rank has one.

        A rank that can repeat a batch runs as many micro-batches as the others, also where fetching its first one
        fails: all ranks hear of that in their first backward, and none waits for the others before.
        """
        most = self.settings.micro_batches_at(step)
        assert most is not None
        first = self._fetch_next(batches)
        start = self._count(first.weights, first.failure, is_short=first.is_short)
        repeats = self._when_short == "repeat"
        if repeats and self._num_windows > 0:
            if first.is_short and _all_have_ended(start):
                return None
        elif not self._knows_its_part(first, 1):
            if not any(start.num_batches):
                return None
            if repeats:
                self._check_all_have_one(start.num_batches)
        self.num_consumed_before = self.num_consumed
        self.num_consumed += first.num_fetched

        def fetch() -> Fetched[Batch]:
            fetched = self._fetch_next(batches)
            self.num_consumed += fetched.num_fetched
            return fetched

        stream = Stream(first, start, most, fetch, self._count, self._last if repeats else None)
        return Window(stream, stream.weights, stream, self._held)

    def _fetch_next(self, batches: Iterator[Batch]) -> Fetched[Batch]:
        """One batch. A loader that failed before would only seem to have ended."""
        fetched = Fetched[Batch](failure=self._loader_failure)
        if self._loader_failure is None:
            self._try(lambda: self._fetch_one(fetched, batches), fetched)
        if fetched.failure is not None and self._loader_failure is None:
            self._loader_failure = UsageError(
                f"the loader failed before ({fetched.failure}), and no batches come after that; call windows() again, "
                "on every rank, with a loader that starts at the batch number `num_consumed` of state_dict()."
            )
        return fetched

    def _count(self, weights: Rows, failure: Exception | None, *, is_short: bool = False) -> Count:
        return Count(weights, self.settings.losses, is_short, failure, self._collective)

    def _knows_its_part(self, fetched: Fetched[Batch], full: int | None) -> bool:
        """Whether this rank does the same with its window whatever the other ranks have."""
        if self._waits_in_forward() or fetched.failure is not None or fetched.is_short:
            return False
        if self._when_short == "repeat":
            is_full = len(fetched.batches) == full
            if not is_full or self._num_windows == 0:  # the first window shows whether a rank has nothing to repeat
                return False
        return any(weight > 0 for row in fetched.weights for weight in row.values())

    def take_back(self) -> None:
        """Count the last window as never cut: another rank failed while fetching its own."""
        self.num_consumed = self.num_consumed_before
        self._num_windows -= 1

    def _fetch(self, batches: Iterator[Batch], step: int) -> Fetched[Batch]:
        fetched = Fetched[Batch]()
        fetch = self._fetch_split if self.settings.source == "split" else self._fetch_many
        self._try(lambda: fetch(fetched, batches, step), fetched)
        return fetched

    @staticmethod
    def _try(fetch: Callable[[], None], fetched: Fetched[Batch]) -> None:
        try:
            fetch()
        except Exception as error:
            fetched.failure = error

    def _fetch_one(self, fetched: Fetched[Batch], batches: Iterator[Batch]) -> None:
        try:
            batch = next(batches)
        except StopIteration:
            fetched.is_short = True
            return
        if self.settings.on_oom == "split":
            batch_size(batch)  # a batch that cannot be cut is refused before memory runs out
        fetched.weights.append(self.weigh(batch))
        fetched.batches.append(batch)
        fetched.num_fetched += 1

    def _fetch_split(self, fetched: Fetched[Batch], batches: Iterator[Batch], step: int) -> None:
        for batch in batches:
            fetched.num_fetched = 1
            fetched.batches = split_batch(batch, self.settings.micro_batches_at(step) or 1)
            fetched.weights = [self.weigh(piece) for piece in fetched.batches]
            return
        fetched.is_short = True

    def _fetch_many(self, fetched: Fetched[Batch], batches: Iterator[Batch], step: int) -> None:
        most = self.settings.micro_batches_at(step)
        weight = self.settings.window_weight_at(step)
        share = None if weight is None else weight / self._collective.world_size
        first = self.settings.losses[0]
        while len(fetched.batches) != most and (share is None or sum(w[first] for w in fetched.weights) < share):
            self._fetch_one(fetched, batches)
            if fetched.is_short:
                break
            fetched.waiting.fetched(fetched.batches[-1])
        fetched.waiting.check()

    def weigh(self, batch: Any) -> dict[str, float]:
        """What a batch counts for each loss."""
        return batch_weights(batch, self._weight, self.settings.losses)

    def _put_aside(self, fetched: Fetched[Batch]) -> bool:
        """Keep or drop the last window, where the policy says so."""
        self.carried = fetched.batches if self.settings.partial == "carry" else []
        return self.settings.partial != "flush"

    def _repeat(self, fetched: Fetched[Batch], num_batches: list[int]) -> None:
        self._check_all_have_one(num_batches)
        missing = max(num_batches) - len(fetched.batches)
        source = fetched.batches[-1:] or self._last
        fetched.batches = fetched.batches + source * missing
        fetched.weights = fetched.weights + [dict.fromkeys(self.settings.losses, 0.0)] * missing

    def _check_all_have_one(self, num_batches: Sequence[int]) -> None:
        empty = [rank for rank, number in enumerate(num_batches) if not number]
        if empty and self._num_windows == 0:
            raise UsageError(
                f"rank {', '.join(map(str, empty))} has no batch at all, but its wrapper needs one to take part in "
                "the other ranks' backward; give every rank at least one batch."
            )


def _all_have_ended(start: Count) -> bool:
    """Whether no rank has a batch. If one failed, the others are on their way, and all meet in the first backward."""
    try:
        return not any(start.num_batches)
    except UsageError:
        return False


def _chain(first: list[Batch], then: Iterable[Batch]) -> Iterator[Batch]:
    """One after the other; a loader that cannot even start fails when its first batch is fetched."""
    yield from first
    yield from then
