"""A collective that remembers its calls, with the bytes that each made this rank send."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tightgrad.core.protocols import Collective, ReduceOp, Traffic
from tightgrad_lab.planning.link import Call


class RecordingCollective:
    """Hands every call on to another collective."""

    def __init__(self, inner: Collective, calls: list[Call]) -> None:
        self._inner = inner
        self.calls = calls

    @property
    def rank(self) -> int:
        """As the inner one's."""
        return self._inner.rank

    @property
    def world_size(self) -> int:
        """As the inner one's."""
        return self._inner.world_size

    @property
    def control_device(self) -> torch.device:
        """As the inner one's."""
        return self._inner.control_device

    @property
    def traffic(self) -> Traffic:
        """As the inner one's."""
        return self._inner.traffic

    def all_reduce_(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """As the inner one's."""
        before = self.traffic.nbytes
        result = self._inner.all_reduce_(tensor, op)
        self._note("all_reduce", before)
        return result

    def all_gather(self, tensor: Tensor) -> Tensor:
        """As the inner one's."""
        before = self.traffic.nbytes
        result = self._inner.all_gather(tensor)
        self._note("all_gather", before)
        return result

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """As the inner one's."""
        before = self.traffic.nbytes
        result = self._inner.start_all_gather(tensor)
        self._note("all_gather", before)
        return result

    def all_to_all(self, chunks: Sequence[Tensor], receive_numels: Sequence[int]) -> list[Tensor]:
        """As the inner one's."""
        before = self.traffic.nbytes
        result = self._inner.all_to_all(chunks, receive_numels)
        self._note("all_to_all", before)
        return result

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """As the inner one's."""
        before = self.traffic.nbytes
        result = self._inner.broadcast_(tensor, source)
        self._note("broadcast", before)
        return result

    def split(self, groups: Sequence[Sequence[int]]) -> "RecordingCollective":
        """A part, whose calls are noted here."""
        return RecordingCollective(self._inner.split(groups), self.calls)

    def _note(self, operation: str, before: int) -> None:
        self.calls.append(Call(operation, self.traffic.nbytes - before))
