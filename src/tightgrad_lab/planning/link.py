"""A link as two numbers, and what a collective takes over it: docs/cost-model.md has the equations."""

import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from tightgrad.collectives import TorchCollective

SMALL_NBYTES = 8
SMALL_REPEATS = 15
FIRST_NBYTES = 32 * 1024
MOST_NBYTES = 256 * 2**20
PROBE_SECONDS = 0.4


@dataclass(frozen=True)
class Link:
    """What is between ranks.

    Args:
        latency_seconds: of one message to a neighbour, alpha.
        bytes_per_second: that a rank can send while it receives as much, beta.
    """

    latency_seconds: float
    bytes_per_second: float


@dataclass(frozen=True)
class Call:
    """One collective of a step.

    Args:
        operation: its name, as `Traffic` has it.
        nbytes: that it makes this rank send.
    """

    operation: str
    nbytes: int


def hops(operation: str, ranks: int) -> int:
    """Messages that follow each other: rings for all but the all-to-all, whose messages leave together."""
    if ranks < 2:
        return 0
    return {"all_reduce": 2 * (ranks - 1), "all_gather": ranks - 1, "all_to_all": 1, "broadcast": 1}[operation]


def seconds_of(call: Call, ranks: int, link: Link) -> float:
    """hops x alpha + bytes / beta."""
    return hops(call.operation, ranks) * link.latency_seconds + call.nbytes / link.bytes_per_second


def measure_link() -> Link:
    """Time small and large all-gathers in the default process group, sent as in training. Collective: every rank must
    call it.
    """
    collective = TorchCollective()
    ranks = collective.world_size
    small = torch.zeros(SMALL_NBYTES, dtype=torch.uint8)
    _gather_seconds(small, collective)
    latency = statistics.median(_gather_seconds(small, collective) for _ in range(SMALL_REPEATS)) / hops(
        "all_gather", ranks
    )
    nbytes = FIRST_NBYTES
    while True:
        seconds = _slowest(_gather_seconds(torch.zeros(nbytes, dtype=torch.uint8), collective))
        if seconds > PROBE_SECONDS or nbytes >= MOST_NBYTES:
            break
        nbytes *= 4
    latency = _slowest(latency)
    rest = max(seconds - hops("all_gather", ranks) * latency, 1e-9)
    return Link(latency, (ranks - 1) * nbytes / rest)


def _gather_seconds(tensor: torch.Tensor, collective: TorchCollective) -> float:
    dist.barrier()
    start = time.perf_counter()
    collective.all_gather(tensor)
    return time.perf_counter() - start


def _slowest(seconds: float) -> float:
    told = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return float(told)
