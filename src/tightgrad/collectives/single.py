"""One process: every collective is the identity and no byte leaves."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tightgrad.core.protocols import ReduceOp, Traffic


class SingleCollective:
    """Serves a run without data-parallel ranks: nothing is sent."""

    rank = 0
    world_size = 1
    control_device = torch.device("cpu")

    def __init__(self) -> None:
        self.traffic = Traffic()

    def all_reduce_(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """Return `tensor` itself, as it is."""
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return a copy of shape (1, *tensor.shape)."""
        return tensor.clone().unsqueeze(0)

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Return a function that gives what `all_gather` gives."""
        gathered = self.all_gather(tensor)
        return lambda: gathered

    def all_to_all(self, chunks: Sequence[Tensor], receive_numels: Sequence[int]) -> list[Tensor]:
        """Return a copy of the one chunk."""
        return [chunk.clone() for chunk in chunks]

    def split(self, groups: Sequence[Sequence[int]]) -> "SingleCollective":
        """Return this collective, the only group."""
        return self

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Return `tensor` itself, as it is."""
        return tensor
