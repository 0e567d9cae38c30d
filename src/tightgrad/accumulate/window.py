"""A window: the micro-batches of one optimizer step, fetched and weighed before the first backward."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tightgrad.core.errors import ConfigError, UsageError
from tightgrad.core.protocols import Collective

Batch = TypeVar("Batch")
Weight = Callable[[Any], float | int | Tensor]


class Window(Generic[Batch]):
    """One optimizer step's micro-batches on this rank. Iterate once over the user's own batches.

    Attributes:
        batches: this rank's micro-batches; empty when this rank's loader ended before another's.
        weights: one number a micro-batch.
        total_weight: N, the weight of all micro-batches on all ranks.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        weights: Sequence[float],
        total_weight: float,
        held: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.batches = tuple(batches)
        self.weights = tuple(weights)
        self.total_weight = total_weight
        self.position = -1
        self.backwards = 0
        self._held = held

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if self.position >= 0:
            raise UsageError("a window can be iterated once; its micro-batches belong to one optimizer step.")
        with self._held():
            for position, batch in enumerate(self.batches):
                self.position = position
                yield batch

    def take_weight(self) -> float:
        """Return the current micro-batch's weight; to be called once for each, by `backward`.

        Raises:
            UsageError: no micro-batch is current, or its backward ran before.
        """
        if self.position < 0:
            raise UsageError("backward() came before the window's first batch; call it inside `for batch in window:`.")
        if self.backwards > self.position:
            raise UsageError(
                f"backward() ran twice for micro-batch {self.position} of {len(self)}; add the losses and call it once."
            )
        if self.backwards < self.position:
            raise UsageError(f"backward() was not called for micro-batch {self.backwards} of {len(self)}.")
        self.backwards += 1
        return self.weights[self.position]

    def check_complete(self) -> None:
        """Raise `UsageError` unless backward ran for every micro-batch."""
        if self.backwards != len(self):
            raise UsageError(
                f"step() came after {self.backwards} of the window's {len(self)} micro-batches; every batch of "
                "`for batch in window:` needs one pipe.backward(loss), because the weights of all were counted."
            )


def make_windows(
    loader: Iterable[Batch],
    micro_batches: int,
    weight: Weight,
    collective: Collective,
    held: Callable[[], AbstractContextManager[None]],
) -> Iterator[Window[Batch]]:
    """Cut a loader into windows until every rank's loader has ended.

    Collective: every rank must iterate in step. A rank whose loader ends first gets empty windows.

    Raises:
        ConfigError: a weight is negative or not finite, on any rank.
        UsageError: another rank failed while fetching its batches.
    """
    batches = iter(loader)
    while True:
        failure: Exception | None = None
        fetched: list[Batch] = []
        weights: list[float] = []
        try:
            fetched = list(itertools.islice(batches, micro_batches))
            weights = [_checked(weight(batch)) for batch in fetched]
        except Exception as error:
            failure = error
        total_weight, total_micro_batches = _count(sum(weights), len(fetched), failure, collective)
        if total_micro_batches == 0:
            return
        yield Window(fetched, weights, total_weight, held)


def _checked(weight: float | int | Tensor) -> float:
    value = float(weight)
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"a micro-batch weighs {value}; a weight must be finite and at least 0.")
    return value


def _count(weight: float, num_batches: int, failure: Exception | None, collective: Collective) -> tuple[float, int]:
    counts = torch.tensor([weight, num_batches, float(failure is not None)], dtype=torch.float64)
    counts = counts.to(collective.control_device)
    total_weight, total_batches, failures = collective.all_reduce_(counts).tolist()
    if failure is not None:
        raise failure
    if failures:
        raise UsageError(f"{failures:.0f} other rank(s) failed while fetching a window; see their own error.")
    return total_weight, int(total_batches)


def num_samples(batch: Any) -> int:
    """The default weight: the first dimension of the first tensor in the batch.

    Raises:
        ConfigError: the batch holds no tensor of at least one dimension.
    """
    tensor = _first_tensor(batch)
    if tensor is None:
        raise ConfigError(
            f"a batch of type {type(batch).__name__} holds no tensor to count samples by; pass "
            "attach(..., weight=lambda batch: ...) with the number that its loss is averaged over."
        )
    return int(tensor.shape[0])


def _first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch if batch.dim() else None
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((tensor for tensor in map(_first_tensor, items) if tensor is not None), None)
