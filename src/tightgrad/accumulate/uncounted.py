"""Windows that no rank counts: of the empty plan, and of steps without micro-batches."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from tightgrad.accumulate.window import Together, Window

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class _Totals:
    total_weights: Mapping[str, float]
    is_counted = True

    @property
    def expected_weights(self) -> Mapping[str, float]:
        return self.total_weights

    def close(self) -> None:
        pass

    def settle(self) -> None:
        pass


_ONE = {"loss": 1.0}


def one(batch: Any) -> float:
    """The weight of a batch where every batch counts the same."""
    return 1.0


def one_batch(batch: Batch) -> Window[Batch]:
    """A window of one batch, whose loss is taken as it is."""
    return Window(Together((batch,)), [_ONE], _Totals(_ONE), _not_held)


def _not_held(index: int, count: int) -> AbstractContextManager[None]:
    return nullcontext()


NO_WINDOW: Window[Any] = Window(Together(), [], _Totals({"loss": 0.0}), _not_held)
