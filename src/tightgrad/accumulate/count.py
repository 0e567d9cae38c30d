"""What the ranks have fetched of a window: one small all-gather, waited for where the answer is needed first.

A rank whose own part does not depend on the answer goes on to its forward meanwhile, and needs it at the first
backward, for N.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import torch

from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Collective

Table = list[list[float]]
_WELL, _FAILED, _LEFT = 0.0, 1.0, 2.0


class WindowLeftError(UsageError):
    """A rank has left a window that others have open: no rank can finish it."""


class Count:
    """One row a rank: weight of each loss, number of micro-batches, loader at its end, what went wrong.

    Collective: every rank must make one for each window, or two where batches are fetched one at a time. Making it does
    not wait; all else does, once.

    Args:
        weights: of this rank's micro-batches.
        losses: names of the losses.
        is_short: whether this rank's loader has ended.
        failure: what went wrong on this rank; raised when the other ranks know. `WindowLeftError` if it leaves.
        collective: the ranks.

    Attributes:
        losses: names of the losses.

    Raises:
        UsageError: whatever is looked at, another rank failed.
        WindowLeftError: the same, a rank has left the window, and none failed.
        CommunicationError: the same, a rank cannot be reached.
    """

    def __init__(
        self,
        weights: Sequence[Mapping[str, float]],
        losses: Iterable[str],
        is_short: bool,
        failure: Exception | None,
        collective: Collective,
    ) -> None:
        self.losses = tuple(losses)
        self._failure = failure
        self._rank = collective.rank
        self._outcome: Table | Exception | None = None
        self._totals: dict[str, float] | None = None
        sums = [sum(row[name] for row in weights) for name in self.losses]
        state = _WELL if failure is None else _LEFT if isinstance(failure, WindowLeftError) else _FAILED
        row = [*sums, len(weights), float(is_short), state]
        self._receive: Callable[[], Table] | None = _gathered(row, collective)

    @property
    def total_weights(self) -> dict[str, float]:
        """N for each loss: the sum over ranks."""
        if self._totals is None:
            *columns, _, _, _ = zip(*self._table(), strict=True)
            self._totals = dict(zip(self.losses, map(sum, columns), strict=True))
        return self._totals

    @property
    def expected_weights(self) -> dict[str, float]:
        """The same: N is counted before the first backward."""
        return self.total_weights

    is_counted = True

    @property
    def num_batches(self) -> list[int]:
        """Micro-batches of each rank."""
        return [int(row[-3]) for row in self._table()]

    @property
    def all_short(self) -> bool:
        """Whether every rank's loader has ended."""
        return all(row[-2] for row in self._table())

    def settle(self) -> None:
        """Leave nothing under way; what went wrong is raised by the next look."""
        with suppress(Exception):
            self._table()

    def close(self) -> None:
        """Nothing else to tell the other ranks."""
        self.settle()

    def _table(self) -> Table:
        if self._receive is not None:
            receive, self._receive = self._receive, None  # whose tensors would outlive the window's forward
            try:
                self._outcome = self._checked(receive())
            except Exception as error:
                self._outcome = error
        assert self._outcome is not None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def _checked(self, table: Table) -> Table:
        failed, left = ([rank for rank, row in enumerate(table) if row[-1] == state] for state in (_FAILED, _LEFT))
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
        return table


def _gathered(row: list[float], collective: Collective) -> Callable[[], Table]:
    """Every rank's row, from a call that waits for them."""
    if collective.world_size == 1:  # without operators, which are slow right after a backward
        return lambda: [row]
    receive = collective.start_all_gather(torch.tensor(row, dtype=torch.float64).to(collective.control_device))
    return lambda: receive().tolist()
