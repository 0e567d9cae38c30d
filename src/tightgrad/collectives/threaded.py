"""Ranks as threads of one process: the semantics of a process group at the speed of a unit test."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tightgrad.collectives.traffic import all_gather_nbytes, all_reduce_nbytes, all_to_all_nbytes, broadcast_nbytes
from tightgrad.core.protocols import ReduceOp, Traffic

Result = TypeVar("Result")
Groups = tuple[tuple[int, ...], ...]

_COMBINE: dict[ReduceOp, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


class _Exchange:
    def __init__(self, world_size: int, timeout_seconds: float) -> None:
        self.slots: list[object] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._parts: dict[Groups, list[_Exchange]] = {}

    def parts(self, groups: "Groups") -> "list[_Exchange]":
        with self._lock:
            if groups not in self._parts:
                self._parts[groups] = [_Exchange(len(group), self._timeout_seconds) for group in groups]
            return self._parts[groups]

    def abort(self) -> None:
        self.barrier.abort()
        with self._lock:
            parts = [part for row in self._parts.values() for part in row]
        for part in parts:
            part.abort()


class ThreadedCollective:
    """Acts as one rank of a group of threads; `run_threaded` makes it."""

    def __init__(self, rank: int, world_size: int, exchange: _Exchange) -> None:
        self.rank = rank
        self.world_size = world_size
        self.control_device = torch.device("cpu")
        self.traffic = Traffic()
        self._exchange = exchange

    def all_reduce_(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """Reduce over ranks in place, in rank order; return the same tensor."""
        tensors = self._swap(tensor.detach().clone())
        reduced = tensors[0]
        for other in tensors[1:]:
            reduced = _COMBINE[op](reduced, other)
        tensor.copy_(reduced)
        self.traffic.add("all_reduce", all_reduce_nbytes(_nbytes(tensor), self.world_size))
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack the ranks' tensors: shape (world_size, *tensor.shape)."""
        self.traffic.add("all_gather", all_gather_nbytes(_nbytes(tensor), self.world_size))
        return torch.stack(self._swap(tensor.detach().clone()))

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Gather as `all_gather` does, at once; return a function that gives the result."""
        gathered = self.all_gather(tensor)
        return lambda: gathered

    def all_to_all(self, chunks: Sequence[Tensor], receive_numels: Sequence[int]) -> list[Tensor]:
        """Send 1-D `chunks[r]` to rank r; return what each rank sent here, of the given sizes."""
        nbytes = [_nbytes(chunk) for chunk in chunks]
        self.traffic.add("all_to_all", all_to_all_nbytes(nbytes, self.rank))
        rows = self._swap([chunk.detach().clone() for chunk in chunks])
        received = [row[self.rank] for row in rows]
        if [chunk.numel() for chunk in received] != list(receive_numels):
            raise ValueError(f"expected chunks of {list(receive_numels)} elements, got {[c.numel() for c in received]}")
        return received

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite `tensor` with rank `source`'s; return it."""
        tensor.copy_(self._swap(tensor.detach().clone())[source])
        nbytes = broadcast_nbytes(_nbytes(tensor), self.world_size, is_source=self.rank == source)
        self.traffic.add("broadcast", nbytes)
        return tensor

    def split(self, groups: Sequence[Sequence[int]]) -> "ThreadedCollective":
        """Return the group, of those given, that this rank is in."""
        key = tuple(tuple(group) for group in groups)
        index = next(index for index, group in enumerate(key) if self.rank in group)
        part = ThreadedCollective(key[index].index(self.rank), len(key[index]), self._exchange.parts(key)[index])
        part.traffic = self.traffic
        return part

    def _swap(self, mine: Result) -> list[Result]:
        self._exchange.slots[self.rank] = mine
        self._exchange.barrier.wait()
        everyone = list(self._exchange.slots)
        self._exchange.barrier.wait()
        return everyone  # type: ignore[return-value]


def run_threaded(
    world_size: int, body: Callable[[ThreadedCollective], Result], *, timeout_seconds: float = 60.0
) -> list[Result]:
    """Run `body(collective)` on `world_size` ranks; return their results by rank.

    Raises:
        Exception: the first rank's own error; the other ranks are released.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> tg.collectives.run_threaded(2, lambda collective: collective.all_reduce_(torch.ones(2) * collective.rank))
        [tensor([1., 1.]), tensor([1., 1.])]
    """
    exchange = _Exchange(world_size, timeout_seconds)
    results: list[Result | None] = [None] * world_size
    errors: list[BaseException | None] = [None] * world_size

    def target(rank: int) -> None:
        try:
            results[rank] = body(ThreadedCollective(rank, world_size, exchange))
        except BaseException as error:
            errors[rank] = error
            exchange.abort()

    threads = [threading.Thread(target=target, args=(rank,), name=f"rank-{rank}") for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [error for error in errors if error is not None]
    for error in failures:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    if failures:
        raise failures[0]
    return results  # type: ignore[return-value]


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
