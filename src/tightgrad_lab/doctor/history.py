"""A run's records, as rules look at them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import tightgrad as tg

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """What ended the run.

    Args:
        step: the number of steps that were applied before.
        error: its class.
        message: what it said.
        out_of_memory: whether there was no memory left.
    """

    step: int
    error: str
    message: str
    out_of_memory: bool


@dataclass(frozen=True)
class History:
    """One run.

    Args:
        ranks: each rank's records, in order; rank 0 first.
        plan: that was run; None if it is not known.
        failure: what ended it; None if nothing is known to have.
    """

    ranks: Sequence[Sequence[Record]]
    plan: tg.Plan | None = None
    failure: Failure | None = None
    source: str = field(default="", compare=False)

    @property
    def steps(self) -> Sequence[Record]:
        """Rank 0's records."""
        return self.ranks[0]

    @property
    def applied(self) -> list[Record]:
        """Rank 0's records of steps that were applied."""
        return [record for record in self.steps if not record.get("skipped")]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a field, where it was measured and is finite, in applied steps of rank 0."""
        pairs = [(int(r["step"]), float(r[name])) for r in self.applied if is_number(r.get(name))]
        return [step for step, _ in pairs], [value for _, value in pairs]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a field was measured and is finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
