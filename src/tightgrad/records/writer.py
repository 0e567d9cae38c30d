"""The interface of all writers of step records."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

Record = Mapping[str, Any]


class RecordWriter(ABC):
    """Takes every step's record, as `StepRecord.to_dict` gives it. Also a context manager, which closes it."""

    def start(self, rank: int, ranks: int, plan: Record) -> None:  # noqa: B027
        """Prepare to write; called once by `attach`, before the first record.

        Args:
            rank: this process's rank.
            ranks: number of processes.
            plan: `Plan.to_config()`.
        """

    def begin(self, windows: int | None) -> None:  # noqa: B027
        """Take note that the windows of a loader begin.

        Args:
            windows: how many this rank's loader makes; None where that is not known.
        """

    @abstractmethod
    def write(self, record: Record) -> None:
        """Take one step's record, without changing it."""

    def failed(self, error: BaseException) -> None:  # noqa: B027
        """Take the error that ended a step."""

    def close(self) -> None:  # noqa: B027
        """Close what is open, since nothing more will be written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.failed(error)
        self.close()


def scalars(record: Record, prefix: str = "tightgrad") -> Iterator[tuple[str, float]]:
    """Yield a record's finite numbers by name: `prefix/field`, and `prefix/field/key` where a field is a mapping."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}/{key}")
        elif key != "step" and isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}/{key}", float(value)
