"""Seconds of each stage of the path, on the host's clock."""

import time
from types import TracebackType


class StageClock:
    """Adds up the seconds of each named stage. On an asynchronous device these are launch times, not run times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str) -> "Stage":
        """Time a `with` block under the name `stage`."""
        return Stage(self, stage)

    def take(self) -> dict[str, float]:
        """Return the seconds so far and start again from zero."""
        seconds, self.seconds = self.seconds, {}
        return seconds


class Stage:
    """Times one `with` block."""

    __slots__ = ("_clock", "_name", "_start")

    def __init__(self, clock: StageClock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        spent = time.perf_counter() - self._start
        seconds = self._clock.seconds  # looked up now: another stage may have been taken meanwhile
        seconds[self._name] = seconds.get(self._name, 0.0) + spent
