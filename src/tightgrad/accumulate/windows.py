"""Cuts a loader into windows, in step with the other ranks."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import GEN_CLOSED, getgeneratorstate
from itertools import chain
from typing import Any, Generic, Literal, TypeVar

from tightgrad.accumulate.alike import NOTHING, Alike
from tightgrad.accumulate.count import Count
from tightgrad.accumulate.draw_order import DrawOrder
from tightgrad.accumulate.fetched import Fetched, uncounted
from tightgrad.accumulate.settings import Accumulate
from tightgrad.accumulate.split import batch_size, is_repeated, repeated, split_batch
from tightgrad.accumulate.streamed import Rows, Streamed
from tightgrad.accumulate.weights import DefaultWeight, FieldsCounted, Weighed, Weight, batch_weights
from tightgrad.accumulate.window import MicroBatchContext, MicroBatches, Window
from tightgrad.core.check import check_integer
from tightgrad.core.errors import ConfigError, UsageError
from tightgrad.core.protocols import Collective

Batch = TypeVar("Batch")
Short = Literal["fewer", "repeat"]

_STACK = 9  # the user's line, above pipe.windows() and what it calls, where the whole window is fetched first

NEEDS_WINDOW = (  # after the name of a method
    "needs a window; call it inside `for window in pipe.windows(loader):`, before the window's step(). abandon(), "
    "leave() and loading a state drop the window as well: go on with the next one."
)


class Windows(Generic[Batch]):
    """Gives one window after the other, as an iterator that has a length where the number of windows is known.

    Args:
        windows: to be iterated once.
        count: gives their number, or raises `TypeError`.
    """

    def __init__(self, windows: Generator[Window[Batch], None, None], count: Callable[[], int]) -> None:
        self._windows = windows
        self._count = count

    def __iter__(self) -> Iterator[Window[Batch]]:
        if getgeneratorstate(self._windows) == GEN_CLOSED:
            raise UsageError(
                "these windows have come to their end, and another loop over them would train nothing. Call "
                "pipe.windows(loader) anew in each epoch."
            )
        return self._windows  # so that warnings count their way up to the loop's own line

    def __next__(self) -> Window[Batch]:
        return next(self._windows)

    def __len__(self) -> int:
        return self._count()


class WindowCutter(Generic[Batch]):
    """Cuts one window after the other: fetches, weighs and counts its batches.

    Args:
        settings: how many micro-batches make a window.
        weight: what a batch counts.
        collective: the data-parallel ranks.
        held: context around each micro-batch.
        one_by_one: whether each batch is fetched when its turn comes, and not a window's batches first.
        when_short: what a rank with fewer micro-batches than another does: go without ("fewer"), or repeat its last
            batch with weight 0, so that a wrapper's collectives match ("repeat").
        alike: gives what every rank has to have alike beside the window.
        waits_in_forward: says whether ranks wait for each other before a window's first backward anyway. Then the
            count is waited for first, since a rank that failed while fetching would not come.
    """

    def __init__(
        self,
        settings: Accumulate,
        weight: Weight,
        collective: Collective,
        held: MicroBatchContext,
        one_by_one: bool,
        when_short: Short,
        waits_in_forward: Callable[[], bool],
        alike: Callable[[], Alike] = lambda: NOTHING,
    ) -> None:
        self.settings = self._planned = settings
        self.carried: list[Batch] = []
        self.num_consumed = 0
        self.num_consumed_before = 0
        self._weight, self._fields = weight, FieldsCounted()
        self._collective = collective
        self._held = held
        self._one_by_one = one_by_one
        self._repeats = when_short == "repeat"
        self._waits_in_forward = waits_in_forward
        self._alike = alike
        self._last: list[Batch] = []
        self._loader_failure: Exception | None = None
        self._num_windows = 0
        self._order = DrawOrder(speaks=settings.fetch == "auto" and collective.rank == 0)

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
        batches = chain(carried, checked(loader))  # one that cannot even start fails at its first batch
        window = self._next(batches, step())
        while window is not None:
            self._num_windows += 1
            try:
                yield window
            finally:
                window.batches.settle()
            window = self._next(batches, step())

    def set_micro_batches(self, number: int | None) -> None:
        """Make windows of this many micro-batches from the next one on; None makes those of the plan again.

        Raises:
            ConfigError: the plan has no number of micro-batches, or never more than one.
        """
        self.check_micro_batches(number)
        self.settings = self._planned if number is None else replace(self._planned, micro_batches=number)

    def check_micro_batches(self, number: int | None) -> None:
        """Raise `ConfigError` where `set_micro_batches` would; change nothing."""
        if number is None:
            return
        check_integer("micro_batches", number, low=1)
        if self._planned.micro_batches is None:
            raise ConfigError(
                f"micro_batches cannot be set to {number}: windows are filled by weight (window_weight="
                f"{self._planned.window_weight!r}). Attach a plan with Accumulate(micro_batches=...)."
            )
        if number > 1 and not self._planned.several_backwards:
            raise ConfigError(
                f"micro_batches cannot be set to {number}: the plan that was attached never has more than one in a "
                "window, for which gradients may be kept and summed in another way. Attach it with the largest number "
                f"that will be set, Accumulate(micro_batches={number}), and set 1 before the first window."
            )

    def num_windows(self, loader: Iterable[Any], step: int) -> int:
        """Return how many windows a loader makes on this rank, from this step on; ranks with longer ones go on.

        Raises:
            TypeError: the loader has no length, or windows are filled by weight.
        """
        try:
            num_batches = len(loader)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError) as error:
            raise TypeError(
                f"pipe.windows(loader) has no length, since the loader has none ({error}). Give it a __len__ that "
                "counts its batches, or go without a length."
            ) from None
        return self.settings.num_windows(len(self.carried) + num_batches, step)

    def uncounted_each(self, loader: Iterable[Batch], _step: Callable[[], int]) -> Iterator[Window[Batch]]:
        """Yield a window for each batch, which no other rank is told of."""
        for batch in checked(loader):
            self.num_consumed_before = self.num_consumed
            self.num_consumed += 1
            yield uncounted(batch)

    def take_back(self) -> None:
        """Count the last window as never cut: another rank failed while fetching its own."""
        self.num_consumed = self.num_consumed_before
        self._num_windows -= 1

    def weigh(self, batch: Any) -> dict[str, float]:
        """Return what a batch counts for each loss: nothing, if a rank has repeated it for the sake of others."""
        if self._collective.world_size > 1 and is_repeated(batch):
            return dict.fromkeys(self.settings.losses, 0.0)
        if isinstance(batch, Weighed):
            return dict(batch.weights)
        row = batch_weights(batch, self._weight, self.settings.losses)
        if self._collective.rank == 0 and not isinstance(self._weight, DefaultWeight):
            self._fields.look(batch, row[self.settings.losses[0]], _STACK)
        return row

    def _next(self, batches: Iterator[Batch], step: int) -> Window[Batch] | None:
        """The next window; None if no rank has one."""
        self._most = self.settings.micro_batches_at(step)
        weight = self.settings.window_weight_at(step)
        self._share = None if weight is None else weight / self._collective.world_size
        return self._streamed(batches) if self._one_by_one else self._fetched(batches)

    def _fetched(self, batches: Iterator[Batch]) -> Window[Batch] | None:
        """A window whose batches are all there; None if no rank has one."""
        fetch = self._fetch_split if self.settings.source == "split" else self._fetch_many
        fetched = self._fetch(lambda into: fetch(into, batches))
        fetched.count = self._count(fetched.weights, fetched.failure, is_short=fetched.is_short)
        if not self._knows_its_part(fetched, self._most):
            found = fetched.count.wait()
            if not any(found.num_batches) or (found.all_short and self._put_aside(fetched)):
                return None
            if self._repeats:
                self._check_all_have_one(found.num_batches)
                missing = max(found.num_batches) - len(fetched)
                spare = fetched.batches[-1:] or self._last
                fetched.batches = fetched.batches + [repeated(batch) for batch in spare * missing]
                fetched.weights = fetched.weights + [dict.fromkeys(self.settings.losses, 0.0)] * missing
        self._last = fetched.batches[-1:] or self._last
        return self._opened(fetched.num_fetched, fetched)

    def _streamed(self, batches: Iterator[Batch]) -> Window[Batch] | None:
        """A window whose batches are fetched in their turn; None if no rank has one.

        A rank that can repeat a batch runs as many micro-batches as the others, also where fetching its first one
        fails: all ranks hear of that in their first backward, and none waits for the others before.
        """
        assert self._most is not None

        def fetch() -> Fetched[Batch]:
            return self._fetch(lambda into: self._fetch_one(into, batches))

        def fetch_later() -> Fetched[Batch]:
            fetched = fetch()
            self.num_consumed += fetched.num_fetched
            return fetched

        first = fetch()
        first.count = self._count(first.weights, first.failure, is_short=first.is_short)
        if self._repeats and self._num_windows > 0:
            if first.is_short and _all_have_ended(first.count):
                return None
        elif not self._knows_its_part(first, 1):
            num_batches = first.count.wait().num_batches
            if not any(num_batches):
                return None
            if self._repeats:
                self._check_all_have_one(num_batches)
        spare = self._last if self._repeats else None
        return self._opened(first.num_fetched, Streamed(first, self._most, fetch_later, self._count, spare))

    def _opened(self, num_fetched: int, batches: MicroBatches[Batch]) -> Window[Batch]:
        self.num_consumed_before = self.num_consumed
        self.num_consumed += num_fetched
        return Window(batches, self._held)

    def _count(self, weights: Rows, failure: Exception | None, *, is_short: bool = False) -> Count:
        losses, most = self.settings.losses, self._most or 0
        alike = self._alike() if self._collective.world_size > 1 else NOTHING
        return Count(weights, losses, self._collective, most=most, is_short=is_short, failure=failure, alike=alike)

    def _knows_its_part(self, fetched: Fetched[Batch], full: int | None) -> bool:
        """Whether this rank does the same with its window whatever the other ranks have."""
        if self._waits_in_forward() or fetched.failure is not None or fetched.is_short:
            return False
        if self._repeats and (len(fetched) != full or self._num_windows == 0):
            return False  # the first window shows whether a rank has nothing to repeat
        return any(weight > 0 for row in fetched.weights for weight in row.values())

    def _fetch(self, fill: Callable[[Fetched[Batch]], None]) -> Fetched[Batch]:
        """What comes from the loader. One that failed before would only seem to have ended."""
        fetched = Fetched[Batch](failure=self._loader_failure)
        if fetched.failure is None:
            try:
                fill(fetched)
            except Exception as error:
                fetched.failure = error
                self._loader_failure = UsageError(
                    f"the loader failed before ({error}), and no batches come after that; call windows() again, on "
                    "every rank, with a loader that starts at the batch number `num_consumed` of state_dict()."
                )
        return fetched

    def _fetch_one(self, fetched: Fetched[Batch], batches: Iterator[Batch]) -> None:
        for batch in batches:
            if self.settings.on_oom == "split":
                batch_size(batch)  # a batch that cannot be cut is refused before memory runs out
            fetched.weights.append(self.weigh(batch))
            fetched.batches.append(batch)
            fetched.num_fetched += 1
            return
        fetched.is_short = True

    def _fetch_split(self, fetched: Fetched[Batch], batches: Iterator[Batch]) -> None:
        for batch in batches:
            fetched.num_fetched = 1
            fetched.batches = split_batch(batch, self._most or 1)
            fetched.weights = [self.weigh(piece) for piece in fetched.batches]
            return
        fetched.is_short = True

    def _fetch_many(self, fetched: Fetched[Batch], batches: Iterator[Batch]) -> None:
        most, share, first = self._most, self._share, self.settings.losses[0]
        self._order.begin()
        while len(fetched) != most and (share is None or sum(row[first] for row in fetched.weights) < share):
            self._fetch_one(fetched, batches)
            if fetched.is_short:
                break
            fetched.waiting.fetched(fetched.batches[-1])
            self._order.add_batch(len(fetched))
        fetched.waiting.check()

    def _put_aside(self, fetched: Fetched[Batch]) -> bool:
        """Keep or drop the last window, where the policy says so."""
        self.carried = fetched.batches if self.settings.partial == "carry" else []
        return self.settings.partial != "flush"

    def _check_all_have_one(self, num_batches: Sequence[int]) -> None:
        empty = [rank for rank, number in enumerate(num_batches) if not number]
        if empty and self._num_windows == 0:
            raise UsageError(
                f"rank {', '.join(map(str, empty))} has no batch at all, but its wrapper needs one to take part in "
                "the other ranks' backward; give every rank at least one batch."
            )


def checked(loader: Iterable[Batch]) -> Iterable[Batch]:
    """Return a loader as it is, whose generator another loop may go on with; one that raises `ConfigError` when it is
    asked for its first batch, where it is nothing that gives batches.
    """
    if isinstance(loader, Mapping | str | bytes) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        kind, hint = type(loader).__name__, ""
        if isinstance(loader, Mapping):
            hint = "; its batches would be the keys. Give one of its values, or zip(*loaders.values())"
        error = ConfigError(
            f"pipe.windows() takes a loader, or any iterable of batches, and was given an object of type {kind}{hint}."
        )
        return map(_raise, (error,))
    return loader


def _raise(error: Exception) -> Any:
    raise error


def _all_have_ended(start: Count) -> bool:
    """Whether no rank has a batch. If one failed, the others are on their way, and all meet in the first backward."""
    try:
        return not any(start.wait().num_batches)
    except UsageError:
        return False
