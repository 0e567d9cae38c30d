"""How many bytes a collective makes this rank send, given the algorithms of gloo and NCCL.

Ring algorithms are counted as they run: a reduce-scatter or an all-gather passes W - 1 pieces of nbytes / W (of
nbytes, for all-gather's own tensor) to the neighbour; an all-reduce is one after the other.
`tightgrad bench link` holds these counts against the network interface's own counters.
"""

from tightgrad.core.errors import ConfigError


def all_reduce_nbytes(nbytes: int, world_size: int) -> int:
    """Return the bytes sent by one rank in an all-reduce of a tensor of `nbytes`."""
    return -(-2 * (world_size - 1) * nbytes // world_size)


def reduce_scatter_nbytes(nbytes: int, world_size: int, backend: str) -> int:
    """Return the bytes sent by one rank in a reduce-scatter of a tensor of `nbytes`; gloo runs a whole all-reduce.

    Raises:
        ConfigError: `backend` is no backend's name, such as "undefined", which get_backend() returns where none was
            named.
    """
    if backend == "undefined" or ":" in backend:
        raise ConfigError(
            f"backend={backend!r} does not say what sends the tensor; pass "
            "tightgrad.collectives.torch_dist.backend_name(device, group)."
        )
    if backend == "gloo":
        return all_reduce_nbytes(nbytes, world_size)
    return (world_size - 1) * nbytes // world_size


def all_gather_nbytes(nbytes: int, world_size: int) -> int:
    """Return the bytes sent by one rank in an all-gather where each rank contributes `nbytes`."""
    return (world_size - 1) * nbytes


def all_to_all_nbytes(chunk_nbytes: list[int], rank: int) -> int:
    """Return the bytes sent by one rank in an all-to-all; its own chunk is not sent."""
    return sum(chunk_nbytes) - chunk_nbytes[rank]


def broadcast_nbytes(nbytes: int, world_size: int, *, is_source: bool) -> int:
    """Return the bytes sent by one rank in a broadcast, counted at the source."""
    return nbytes * (world_size - 1) if is_source else 0
