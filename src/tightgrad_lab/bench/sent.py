"""What torch.distributed is asked to send over gloo, seen by the profiler: the same witness for every loop."""

import os
from collections.abc import Callable
from math import prod

from torch.profiler import ProfilerActivity, profile

from tightgrad.collectives.traffic import all_gather_nbytes, all_reduce_nbytes, broadcast_nbytes

PREFIX = "gloo:"
ITEM_NBYTES = {"float": 4, "double": 8, "int": 4, "long int": 8, "unsigned char": 1, "c10::BFloat16": 2, "c10::Half": 2}


def sent_nbytes(body: Callable[[], object], rank: int, world_size: int) -> int:
    """Run `body`; return the bytes that rank `rank` sends in its collectives, by the algorithms they run as."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself on stderr
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        body()
    total = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name().startswith(PREFIX):
            nbytes = prod(event.shapes()[0]) * ITEM_NBYTES[event.dtypes()[0]]
            total += _SENT[event.name().removeprefix(PREFIX)](nbytes, rank, world_size)
    return total


_SENT: dict[str, Callable[[int, int, int], int]] = {
    "all_reduce": lambda nbytes, rank, size: all_reduce_nbytes(nbytes, size),
    "all_gather": lambda nbytes, rank, size: all_gather_nbytes(nbytes, size),
    "broadcast": lambda nbytes, rank, size: broadcast_nbytes(nbytes, size, is_source=rank == 0),
    "barrier": lambda nbytes, rank, size: 0,
}
