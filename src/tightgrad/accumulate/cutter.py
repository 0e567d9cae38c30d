"""Cuts a loader into windows, in step with the other ranks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch

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
    """

    def __init__(
        self, settings: Accumulate, weight: Weight, collective: Collective, held: Held, when_short: Short
    ) -> None:
        self.settings = settings
        self.carried: list[Batch] = []
        self.num_consumed = 0
        self.num_consumed_before = 0
        self._weight = weight
        self._collective = collective
        self._held = held
        self._when_short = when_short
        self._last: list[Batch] = []
        self._num_windows = 0

    def cut(self, loader: Iterable[Batch], step: Callable[[], int]) -> Iterator[Window[Batch]]:
        """Yield windows until every rank's loader has ended. Collective: every rank must iterate.

        Args:
            loader: batches, of unknown number.
            step: gives the number of applied steps, which schedules go by.

        Raises:
            ConfigError: a weight is negative or not finite, on this rank.
            UsageError: another rank failed while fetching its batches.
        """
        carried, self.carried = self.carried, []
        batches = _chain(carried, loader)
        while True:
            fetched = self._fetch(batches, step())
            counts = self._count(fetched)
            num_batches = counts[:, -3].to(torch.int64)
            if not num_batches.any():
                return
            if bool(counts[:, -2].all()) and self._put_aside(fetched):
                return
            total_weights = dict(zip(self.settings.losses, counts[:, :-3].sum(dim=0).tolist(), strict=True))
            if self._when_short == "repeat":
                self._repeat(fetched, num_batches)
            self.num_consumed_before = self.num_consumed
            self.num_consumed += fetched.num_fetched
            self._last = fetched.batches[-1:] or self._last
            self._num_windows += 1
            yield Window(fetched.batches, fetched.weights, total_weights, self._held)

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

    def _count(self, fetched: _Fetched[Batch]) -> torch.Tensor:
        """One row a rank: weight of each loss, number of micro-batches, loader at its end, fetching failed."""
        weights = [sum(row[name] for row in fetched.weights) for name in self.settings.losses]
        flags = [len(fetched.batches), float(fetched.is_short), float(fetched.failure is not None)]
        mine = torch.tensor([*weights, *flags], dtype=torch.float64).to(self._collective.control_device)
        counts = self._collective.all_gather(mine).cpu()
        if fetched.failure is not None:
            raise fetched.failure
        failed = counts[:, -1].nonzero().view(-1).tolist()
        if failed:
            raise UsageError(
                f"rank {', '.join(map(str, failed))} failed while fetching a window; see the error there. This rank "
                f"({self._collective.rank}) stops as well."
            )
        return counts

    def _put_aside(self, fetched: _Fetched[Batch]) -> bool:
        """Keep or drop the last window, where the policy says so."""
        self.carried = fetched.batches if self.settings.partial == "carry" else []
        return self.settings.partial != "flush"

    def _repeat(self, fetched: _Fetched[Batch], num_batches: torch.Tensor) -> None:
        missing = int(num_batches.max()) - len(fetched.batches)
        source = fetched.batches[-1:] or self._last
        empty = (num_batches == 0).nonzero().view(-1).tolist()
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
