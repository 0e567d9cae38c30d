"""Seconds that a piece of work takes on its device."""

import time
from collections.abc import Callable

import torch

CACHE_NBYTES = 2**28
"""More than any GPU's cache holds."""


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one call.

    On CUDA by events on the device. Before, it is given memory to write that fills its cache: so the cache is cold, as
    after a backward, and the device is busy until the first kernels of `work` have been submitted.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.empty(CACHE_NBYTES, dtype=torch.uint8, device=device).zero_()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000
