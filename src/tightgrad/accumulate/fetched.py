"""Micro-batches of a window that are all there before the first one runs."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tightgrad.accumulate.count import Count
from tightgrad.accumulate.reuse import WaitingBatches
from tightgrad.accumulate.window import Window

Batch = TypeVar("Batch")


@dataclass
class Fetched(Generic[Batch]):
    """Holds what came from a loader.

    Attributes:
        batches: what came.
        weights: of each batch, for each loss.
        num_fetched: batches of the loader that they are made of.
        is_short: whether the loader has ended.
        failure: what went wrong.
        waiting: looks after batches that wait for others of their window.
        count: of all ranks, begun once this rank has fetched.
    """

    batches: list[Batch] = field(default_factory=list)
    weights: list[dict[str, float]] = field(default_factory=list)
    num_fetched: int = 0
    is_short: bool = False
    failure: Exception | None = None
    waiting: WaitingBatches = field(default_factory=WaitingBatches)
    count: Count = field(init=False)
    is_counted = True

    @property
    def written_on_some(self) -> bool:
        """Tell whether only some ranks had written to weights when the window was counted."""
        return self.count.wait().written_on_some

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> Batch:
        return self.batches[position]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def reach(self, position: int) -> bool:
        """Tell whether there is such a micro-batch.

        Raises:
            UsageError: the loader has written to it since it was fetched.
        """
        if position >= len(self.batches):
            return False
        self.waiting.hand_out(position)
        return True

    def wait_for_total(self) -> dict[str, float]:
        """Return N for each loss."""
        return self.count.wait().total_weights

    wait_for_expected = wait_for_total

    def close(self) -> None:
        """Wait for the count; there is nothing else to tell the other ranks."""
        self.count.settle()

    settle = close


def uncounted(*batches: Batch) -> Window[Batch]:
    """Return a window that no rank counts, whose losses are taken as they are."""
    fetched = Fetched(list(batches), [{"loss": 1.0}] * len(batches))
    fetched.count = Count(fetched.weights, ["loss"])
    return Window(fetched, lambda position, count: nullcontext())


NO_WINDOW: Window[Any] = uncounted()
