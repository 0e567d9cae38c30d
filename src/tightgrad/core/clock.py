"""Seconds of each stage of the path, on the host's clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up the seconds of each named stage. On an asynchronous device these are launch times, not run times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a `with` block under the name `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """Return the seconds so far and start again from zero."""
        seconds, self.seconds = self.seconds, {}
        return seconds
