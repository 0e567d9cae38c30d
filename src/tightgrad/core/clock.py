"""Seconds of each stage of the path, on the host's clock, and its range in a trace of torch.profiler."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

# torch 2.9 to 2.14: whether this thread is profiled. Entering record_function costs a hundred times more than asking.
from torch._C._autograd import _profiler_enabled
from torch.profiler import record_function

STAGES = {
    "backward": "scale a micro-batch's loss, and run its backward",
    "accumulate": "add a micro-batch's gradient to the window's",
    "wait": "wait for the sums over ranks that began during backward",
    "guard": "ask all ranks whether everything is finite and the same",
    "local_clip": "limit what this rank adds to the sum",
    "encode": "compress",
    "collective": "send and receive",
    "decode": "decompress what was received",
    "clip": "take the norm and clip",
    "optimizer": "hand the gradients over, and step",
}
"""What each stage does, in the order of the path. Records have seconds, traces `tightgrad.<stage>`."""


class StageClock:
    """Adds up the seconds of each named stage. On an asynchronous device these are launch times, not run times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a `with` block under the name `stage`; where torch.profiler runs, as a range `tightgrad.<stage>`."""
        start = time.perf_counter()
        try:
            with record_function(f"tightgrad.{stage}") if _profiler_enabled() else nullcontext():
                yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """Return the seconds so far and start again from zero."""
        seconds, self.seconds = self.seconds, {}
        return seconds
