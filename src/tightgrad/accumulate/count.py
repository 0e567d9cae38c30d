"""What the ranks have fetched for a window: one small all-gather, waited for where the answer is needed first.

A rank whose own part does not depend on the answer goes on to its forward meanwhile, and needs it at the first
backward, for N.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Collective


class Count:
    """One row a rank: weight of each loss, number of micro-batches, loader at its end, fetching failed.

    Collective: every rank must make one for each window. Making it does not wait; all else does, once.

    Args:
        weights: of this rank's micro-batches.
        losses: names of the losses.
        is_short: whether this rank's loader has ended.
        failure: what went wrong on this rank; raised when the other ranks know.
        collective: the ranks.

    Raises:
        UsageError: whatever is looked at, another rank failed.
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
        self._losses = tuple(losses)
        self._failure = failure
        self._rank = collective.rank
        self._outcome: Tensor | Exception | None = None
        sums = [sum(row[name] for row in weights) for name in self._losses]
        row = [*sums, len(weights), float(is_short), float(failure is not None)]
        mine = torch.tensor(row, dtype=torch.float64)
        self._receive = collective.start_all_gather(mine.to(collective.control_device))

    @property
    def total_weights(self) -> dict[str, float]:
        """N for each loss: the sum over ranks."""
        return dict(zip(self._losses, self._table()[:, :-3].sum(dim=0).tolist(), strict=True))

    @property
    def num_batches(self) -> Tensor:
        """Micro-batches of each rank: int64, shape (ranks,)."""
        return self._table()[:, -3].to(torch.int64)

    @property
    def all_short(self) -> bool:
        """Whether every rank's loader has ended."""
        return bool(self._table()[:, -2].all())

    def settle(self) -> None:
        """Leave nothing under way; what went wrong is raised by the next look."""
        with suppress(Exception):
            self._table()

    def _table(self) -> Tensor:
        if self._outcome is None:
            try:
                self._outcome = self._checked(self._receive().cpu())
            except Exception as error:
                self._outcome = error
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def _checked(self, table: Tensor) -> Tensor:
        if self._failure is not None:
            raise self._failure
        failed = table[:, -1].nonzero().view(-1).tolist()
        if failed:
            raise UsageError(
                f"rank {', '.join(map(str, failed))} failed while fetching a window; see the error there. This rank "
                f"({self._rank}) stops as well."
            )
        return table
