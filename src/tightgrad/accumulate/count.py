"""What the ranks have fetched of a window: one small all-gather, waited for where the answer is needed first.

A rank whose own part does not depend on the answer goes on to its forward meanwhile, and needs it at the first
backward, for N.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from tightgrad.accumulate.alike import (
    NOTHING,
    Alike,
    difference,
    parted,
    settings_parted,
    steps_parted,
    written_on_some,
)
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Collective

Table = list[list[float]]
_WELL, _FAILED, _LEFT = 0, 1, 2
_ENDED = 4  # added where the loader has ended: one number for both, since each costs every rank bytes in each window


class WindowLeftError(UsageError):
    """Raised when a rank has left a window that others have open: no rank can finish it."""


@dataclass(frozen=True)
class Counted:
    """Tells what all ranks have of a window.

    Attributes:
        total_weights: N for each loss: the sum over ranks.
        num_batches: micro-batches of each rank.
        all_short: whether every rank's loader has ended.
        written_on_some: whether something else than a step has written to weights, and not on all ranks.
    """

    total_weights: dict[str, float]
    num_batches: list[int]
    all_short: bool
    written_on_some: bool


class Count:
    """Gathers one row a rank: weight of each loss, number of micro-batches, K, loader at its end, what went wrong.

    Collective: every rank must make one for each window, or two where batches are fetched one at a time. Making it does
    not wait; `wait` does, once.

    Args:
        weights: of this rank's micro-batches, for each loss.
        losses: names of the losses.
        collective: the ranks; None for this one alone.
        most: micro-batches of a full window, the same on every rank; 0 if it has no such number.
        is_short: whether this rank's loader has ended.
        alike: what all ranks have to have alike.
        failure: what went wrong on this rank; raised when the other ranks know. `WindowLeftError` if it leaves.
    """

    _answer: Counted | Exception

    def __init__(
        self,
        weights: Sequence[Mapping[str, float]],
        losses: Iterable[str],
        collective: Collective | None = None,
        *,
        most: int = 0,
        is_short: bool = False,
        failure: Exception | None = None,
        alike: Alike = NOTHING,
    ) -> None:
        self.losses = tuple(losses)
        self._failure, self._alike = failure, alike
        self._rank = 0 if collective is None else collective.rank
        sums = [sum(row[name] for row in weights) for name in self.losses]
        state = _WELL if failure is None else _LEFT if isinstance(failure, WindowLeftError) else _FAILED
        row = [*sums, len(weights), float(most), float(state + _ENDED * is_short), alike.rate, alike.number]
        self._receive: Callable[[], Table] | None = _gathered(row, collective)

    def wait(self) -> Counted:
        """Wait for all ranks' rows; return what they say.

        Raises:
            Exception: the failure of this rank.
            UsageError: another rank failed, or has another K.
            WindowLeftError: a rank has left the window, and none failed.
            CommunicationError: a rank cannot be reached.
        """
        if self._receive is not None:
            receive, self._receive = self._receive, None  # whose tensors would outlive the window's forward
            try:
                self._answer = self._read(receive())
            except Exception as error:
                self._answer = error
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def settle(self) -> None:
        """Leave nothing under way; what went wrong is raised by the next `wait`."""
        with suppress(Exception):
            self.wait()

    def _read(self, table: Table) -> Counted:
        *weights, num_batches, most, flags, rates, numbers = zip(*table, strict=True)
        are_short, states = zip(*(divmod(int(flag), _ENDED) for flag in flags), strict=True)
        failed, left = ([rank for rank, found in enumerate(states) if found == state] for state in (_FAILED, _LEFT))
        if self._failure is not None and (self._rank in failed or not failed):
            raise self._failure
        if failed:
            raise UsageError(
                f"rank {', '.join(map(str, failed))} failed while fetching a window; see the error there. This rank "
                f"({self._rank}) stops as well."
            )
        if left:
            raise WindowLeftError(
                f"rank {', '.join(map(str, left))} has left the window by abandon(), so that rank {self._rank} cannot "
                "finish it; call abandon() on every rank."
            )
        if len(set(most)) > 1:
            shown = ", ".join(f"{number:g} on rank {rank}" for rank, number in enumerate(most))
            raise UsageError(
                f"the ranks have different numbers of micro-batches in a window ({shown}); set the same number on "
                "every rank, in the same window."
            )
        part = difference(numbers)
        if part == "steps":
            raise UsageError(steps_parted(numbers))
        if part == "settings":
            raise UsageError(settings_parted(rates, numbers))
        if part is not None:
            raise UsageError(parted(part, numbers, self._alike.here(part)))
        totals = {name: sum(column, 0.0) for name, column in zip(self.losses, weights, strict=True)}
        return Counted(totals, [int(number) for number in num_batches], all(are_short), written_on_some(numbers))


def _gathered(row: list[float], collective: Collective | None) -> Callable[[], Table]:
    """Begin to gather every rank's row; what is returned waits for them."""
    if collective is None or collective.world_size == 1:  # without operators, which are slow right after a backward
        return lambda: [row]
    receive = collective.start_all_gather(
        torch.tensor(row, dtype=torch.float64, device="cpu").to(collective.control_device)
    )
    return lambda: receive().tolist()
