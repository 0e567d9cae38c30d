"""The bytes that each reducer says it sends, written from its documentation and not from its code."""

import hashlib
from math import prod

from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec
from tightgrad.testing.reducer_checks import Shapes, WireBytes


def payload_nbytes(name: str, shape: tuple[int, ...], codec: Codec, numel: int | None = None) -> int:
    nbytes = codec.payload_nbytes(GradSpec(name, shape, prod(shape) if numel is None else numel))
    assert nbytes is not None
    return nbytes


def all_reduce_nbytes(numel: int, world_size: int) -> int:
    """A ring all-reduce sends 2 (W - 1) / W of the float32 numbers."""
    return -(-2 * (world_size - 1) * 4 * numel // world_size)


def ordered_nbytes(numel: int, world_size: int, rank: int) -> int:
    """A sum in rank order: every other rank's chunk to it, then one's own, as long as the longest, to every other."""
    if world_size <= 2:
        return all_reduce_nbytes(numel, world_size)
    longest = -(-numel // world_size)
    own = min(numel, longest * (rank + 1)) - min(numel, longest * rank)
    return 4 * (numel - own + (world_size - 1) * longest)


def dense_nbytes(shapes: Shapes, codec: Codec | None, world_size: int, rank: int) -> int:
    assert codec is None
    return all_reduce_nbytes(sum(map(prod, shapes.values())), world_size)


def gather_nbytes(shapes: Shapes, codec: Codec | None, world_size: int, rank: int) -> int:
    """The payload, once to each other rank."""
    assert codec is not None
    return (world_size - 1) * sum(payload_nbytes(name, shape, codec) for name, shape in shapes.items())


def two_shot_nbytes(shapes: Shapes, codec: Codec | None, world_size: int, rank: int) -> int:
    """Every other rank's chunks to it, then one's own summed chunks (padded to the longest) to every other rank."""
    assert codec is not None
    messages = [
        sum(
            payload_nbytes(name, shape, codec, _chunk(prod(shape), codec.granularity, world_size, r))
            for name, shape in shapes.items()
        )
        for r in range(world_size)
    ]
    return sum(messages) - messages[rank] + (world_size - 1) * max(messages)


def linear_nbytes(shapes: Shapes, codec: Codec | None, world_size: int, rank: int) -> int:
    """The payloads' float32 numbers, summed in rank order."""
    assert codec is not None
    nbytes = sum(payload_nbytes(name, shape, codec) for name, shape in shapes.items())
    return ordered_nbytes(nbytes // 4, world_size, rank)


def powersgd_nbytes(approximation_rank: int) -> WireBytes:
    """Of each matrix that pays twice over, two factors; of all else, all; in two sums, of two_shot if coded."""

    def nbytes(shapes: Shapes, codec: Codec | None, world_size: int, rank: int) -> int:
        first: Shapes = {}
        second: Shapes = {}
        for name, shape in shapes.items():
            rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (0, 0)
            kept = min(approximation_rank, rows, columns)
            if rows * columns and rows * columns >= 2 * (rows + columns) * kept:
                first[name] = (rows, kept)
                second[name] = (columns, kept)
            else:
                first[name] = shape
        if codec is not None:
            return sum(two_shot_nbytes(part, codec, world_size, rank) for part in (first, second))
        return sum(ordered_nbytes(sum(map(prod, part.values())), world_size, rank) for part in (first, second))

    return nbytes


def hierarchical_nbytes(ranks_per_node: int, inner: WireBytes) -> WireBytes:
    """A dense sum in the node; the inner reducer on the tensors it owns; a broadcast of these in the node."""

    def nbytes(shapes: Shapes, codec: Codec | None, world_size: int, rank: int) -> int:
        nodes = [
            range(start, min(world_size, start + ranks_per_node)) for start in range(0, world_size, ranks_per_node)
        ]
        node, place = nodes[rank // ranks_per_node], rank % ranks_per_node
        sent = ordered_nbytes(sum(map(prod, shapes.values())), len(node), place)
        if len(nodes) == 1:
            return sent
        owned = {name: shape for name, shape in shapes.items() if _hash(name) % len(nodes[-1]) == place}
        across = [members[place] for members in nodes if place < len(members)]
        if owned:
            sent += inner(owned, codec, len(across), across.index(rank))
        return sent + 4 * sum(map(prod, owned.values())) * (len(node) - 1)

    return nbytes


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _chunk(numel: int, granularity: int, world_size: int, rank: int) -> int:
    blocks = -(-numel // granularity)
    start, stop = blocks * rank // world_size * granularity, blocks * (rank + 1) // world_size * granularity
    return min(numel, stop) - min(numel, start)
