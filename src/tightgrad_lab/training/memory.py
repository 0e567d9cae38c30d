"""Peak bytes of live tensors: on a GPU from the allocator, on the CPU from the profiler's record of it."""

import gc
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

MEMORY_EVENT = "[memory]"


def peak_memory(body: Callable[[], object], device: torch.device, tries: int = 1) -> int:
    """Run `body` `tries` times; return the most bytes of tensors alive at once that were made in it.

    What was alive before does not count, so `body` makes all that is to be measured. On the CPU the smallest of all
    tries counts: a buffer that gloo frees on a thread of its own, which the profiler does not see, can only add. And
    there `body` runs once before: in a process that has not trained yet, the profiler's many small records lie between
    the first large tensors, whose memory malloc then cannot use again (an LSTM over 400 words took 20 GB).
    """
    measure = _cuda_peak if device.type == "cuda" else _cpu_peak
    if device.type != "cuda":
        body()
    peaks = []
    for _ in range(tries):
        gc.collect()
        peaks.append(measure(body, device))
    return min(peaks)


def _cuda_peak(body: Callable[[], object], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    body()
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(body: Callable[[], object], device: torch.device) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        body()
    results = profiler.profiler.kineto_results
    changes = sorted((e for e in results.events() if e.name() == MEMORY_EVENT), key=lambda e: e.start_ns())
    alive = peak = 0
    for change in changes:
        alive += change.nbytes()
        peak = max(peak, alive)
    return peak
