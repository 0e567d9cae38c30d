"""The interface to the network, and the counter of the bytes that leave through it."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

_MOST_BYTES = 240
NOTHING = ""

ReduceOp = Literal["sum", "max", "min"]


class Traffic:
    """Counts the bytes that leave this rank; nothing else in the library counts bytes.

    Attributes:
        nbytes: bytes of all tensors sent so far.
        by_operation: the same, by the name of the collective operation.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self.by_operation: dict[str, int] = {}

    def add(self, operation: str, nbytes: int) -> None:
        """Count bytes under the name of the collective that sent them."""
        self.nbytes += nbytes
        self.by_operation[operation] = self.by_operation.get(operation, 0) + nbytes


class TrafficMeter:
    """Counts the bytes that left this rank between two calls of `pop`."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._before = traffic.nbytes

    def peek(self) -> int:
        """Return the bytes of tensors since the last call of `pop`."""
        return self._traffic.nbytes - self._before

    def go_on(self, nbytes: int) -> None:
        """Count as if since the last call of `pop` so many bytes had been sent."""
        self._before = self._traffic.nbytes - nbytes

    def pop(self) -> int:
        """Return the bytes of tensors since the last call."""
        before, self._before = self._before, self._traffic.nbytes
        return self._before - before


class Collective(Protocol):
    """Runs operations over ranks. Every rank must make the same calls in the same order. Apart from it, only wrappers
    and the norm of sharded gradients use the network.
    """

    @property
    def rank(self) -> int:
        """Return the number of this process, 0 to world_size - 1."""

    @property
    def world_size(self) -> int:
        """Return the number of processes."""

    @property
    def control_device(self) -> torch.device:
        """Return where small control tensors must be: the CPU, or this rank's GPU under NCCL."""

    @property
    def traffic(self) -> Traffic:
        """Return the counter of the bytes that left this rank so far."""

    def all_reduce_(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """Reduce over ranks in place; return the same tensor."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack the ranks' tensors (all of one shape and dtype): shape (world_size, *tensor.shape)."""

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start an all-gather without waiting; return a function that waits, and returns what `all_gather` returns.

        Call that function once, before or after other operations of the group.
        """

    def all_to_all(self, chunks: Sequence[Tensor], receive_numels: Sequence[int]) -> list[Tensor]:
        """Send 1-D `chunks[r]` to rank r; return what each rank sent here, of the given sizes."""

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite `tensor` with rank `source`'s; return it."""

    def split(self, groups: Sequence[Sequence[int]]) -> "Collective":
        """Return the group, of those given, that this rank is in: its ranks count from 0 in the order given.

        Collective: every rank must call it with the same groups, which hold each rank once. Bytes sent in a group
        are counted in this `traffic`. Asking for the same groups again costs nothing.
        """


def largest_over_ranks(numbers: Sequence[int], collective: Collective) -> list[int]:
    """Return the largest of each number, 0 to 255, on any rank; of flags, whether any rank has set it. Collective:
    every rank must call it.
    """
    mine = torch.tensor(numbers, dtype=torch.uint8, device="cpu").to(collective.control_device)
    return collective.all_reduce_(mine, "max").tolist()


def gathered(numbers: Sequence[int], collective: Collective) -> list[list[int]]:
    """Return every rank's numbers, by rank. Collective: every rank must call it."""
    mine = torch.tensor(numbers, dtype=torch.int64, device="cpu").to(collective.control_device)
    rows: list[list[int]] = collective.all_gather(mine).view(-1, len(numbers)).tolist()
    return rows


def failed_ranks(error: BaseException | None, collective: Collective) -> list[int]:
    """Tell the other ranks whether this one has failed, and return those that have. Collective: every rank must call
    it.
    """
    return [rank for rank, (failed,) in enumerate(gathered([error is not None], collective)) if failed]


def raise_on_every_rank(error: Exception | None, elsewhere: Callable[[int], Exception], collective: Collective) -> None:
    """Raise if any rank has failed. Collective: every rank must call it.

    Args:
        error: of this rank; None if it has not failed.
        elsewhere: gives what ranks that have not failed raise; it takes the number of the first that has.
        collective: the ranks.

    Raises:
        Exception: this rank's error if it has failed, else what `elsewhere` gives; the other ranks know of it.
    """
    failed = failed_ranks(error, collective)
    if error is not None:
        raise error
    if failed:
        raise elsewhere(failed[0])


def cause(error: BaseException | None) -> str:
    """Return an error's kind and first line."""
    if error is None:
        return NOTHING
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(": ")


def told(mine: str, collective: Collective) -> str:
    """Tell the other ranks what went wrong here, and return who failed and why, on all ranks. Collective: every rank
    must call it.

    Args:
        mine: what went wrong on this rank; nothing where nothing did.
        collective: the ranks.
    """
    text = mine.encode()[:_MOST_BYTES]
    row = torch.zeros(_MOST_BYTES, dtype=torch.uint8, device="cpu")
    row[: len(text)] = torch.tensor(list(text), dtype=torch.uint8, device="cpu")
    table = collective.all_gather(row.to(collective.control_device)).cpu()
    texts = [bytes(found.tolist()).rstrip(b"\0").decode(errors="ignore") for found in table]
    return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text)
