"""What a step takes: docs/cost-model.md has the equations, the tests of the link bench hold them to measured steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from tightgrad.collectives.traffic import all_reduce_nbytes
from tightgrad_lab.planning.link import Call, Link, seconds_of

FIRST_BUCKET_NBYTES = 2**20
BUCKET_NBYTES = 25 * 2**20
"""Of DistributedDataParallel as it comes."""


@dataclass(frozen=True)
class Compute:
    """What a step takes on one rank without any communication.

    Args:
        forward_seconds: of all micro-batches, with all backwards but the last.
        backward_seconds: of the last micro-batch, during which DDP communicates.
        optimizer_seconds: of the optimizer.
    """

    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.forward_seconds + self.backward_seconds + self.optimizer_seconds


@dataclass(frozen=True)
class PathCost:
    """What a plan adds to a step.

    Args:
        seconds: of computing: guard, encoding, decoding, feedback.
        calls: its collectives, in order.
    """

    seconds: float
    calls: tuple[Call, ...]

    @property
    def wire_bytes(self) -> int:
        """That leave a rank."""
        return sum(call.nbytes for call in self.calls)


def plan_seconds(compute: Compute, path: PathCost, ranks: int, link: Link) -> float:
    """Compute, then the path, then the network: nothing overlaps."""
    return compute.seconds + path.seconds + sum(seconds_of(call, ranks, link) for call in path.calls)


def ddp_seconds(compute: Compute, numels: Sequence[int], ranks: int, link: Link, itemsize: int = 4) -> float:
    """Float32 DDP: each bucket is summed as soon as backward has filled it, one after the other.

    Args:
        compute: of a step.
        numels: of the parameters, in the order in which the model has them.
        ranks: of the run.
        link: between them.
        itemsize: bytes of an element.
    """
    total = sum(numels)
    end = ready = 0.0
    for bucket in ddp_buckets([itemsize * numel for numel in reversed(numels)]):
        ready += compute.backward_seconds * bucket / (itemsize * total)
        call = Call("all_reduce", all_reduce_nbytes(bucket, ranks))
        end = max(end, ready) + seconds_of(call, ranks, link)
    return compute.forward_seconds + max(end, compute.backward_seconds) + compute.optimizer_seconds


def ddp_buckets(nbytes: Sequence[int]) -> list[int]:
    """Bytes of DDP's buckets, from those of the gradients in the order in which they are ready."""
    buckets = [0]
    for each in nbytes:
        limit = FIRST_BUCKET_NBYTES if len(buckets) == 1 else BUCKET_NBYTES
        if buckets[-1] >= limit:
            buckets.append(0)
        buckets[-1] += each
    return buckets
