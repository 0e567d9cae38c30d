"""The bytes that each reducer says it sends, written from its documentation and not from its code."""

from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec


def payload_nbytes(numel: int, codec: Codec) -> int:
    return codec.payload_nbytes(GradSpec("x", (numel,), numel))


def dense_nbytes(numels: list[int], codec: Codec | None, world_size: int, rank: int) -> int:
    """A ring all-reduce sends 2 (W - 1) / W of the float32 gradients."""
    assert codec is None
    return -(-2 * (world_size - 1) * 4 * sum(numels) // world_size)


def gather_nbytes(numels: list[int], codec: Codec | None, world_size: int, rank: int) -> int:
    """The payload, once to each other rank."""
    assert codec is not None
    return (world_size - 1) * sum(payload_nbytes(numel, codec) for numel in numels)


def two_shot_nbytes(numels: list[int], codec: Codec | None, world_size: int, rank: int) -> int:
    """Every other rank's chunks to it, then one's own summed chunks (padded to the longest) to every other rank."""
    assert codec is not None
    rows = [[_chunk(numel, codec.granularity, world_size, r) for numel in numels] for r in range(world_size)]
    messages = [sum(payload_nbytes(numel, codec) for numel in row) for row in rows]
    return sum(messages) - messages[rank] + (world_size - 1) * max(messages)


def _chunk(numel: int, granularity: int, world_size: int, rank: int) -> int:
    blocks = -(-numel // granularity)
    start, stop = blocks * rank // world_size * granularity, blocks * (rank + 1) // world_size * granularity
    return min(numel, stop) - min(numel, start)
