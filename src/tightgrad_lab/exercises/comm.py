"""Processes as threads, for the exercises that communicate: each sees a few methods, and its calls are counted."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from tightgrad.collectives import ThreadedCollective, run_threaded

Result = TypeVar("Result")
SECONDS = 30.0
"""That a rank waits for the others before it gives up."""


class Comm:
    """What a student's program communicates by.

    Args:
        collective: of the library.
    """

    def __init__(self, collective: ThreadedCollective) -> None:
        self.rank = collective.rank
        self.world_size = collective.world_size
        self.calls: list[tuple[str, int]] = []
        self._collective = collective

    def __repr__(self) -> str:
        return f"comm of process {self.rank} of {self.world_size}"

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Add a tensor over all processes, in place; return it."""
        with torch.no_grad():
            self._count("all_reduce", tensor)
            return self._collective.all_reduce_(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, stacked."""
        self._count("all_gather", tensor)
        return self._collective.all_gather(tensor)

    def broadcast_(self, tensor: Tensor, source: int) -> Tensor:
        """Overwrite a tensor by that of one process; return it."""
        with torch.no_grad():
            self._count("broadcast", tensor)
            return self._collective.broadcast_(tensor, source)

    def _count(self, kind: str, tensor: Tensor) -> None:
        self.calls.append((kind, tensor.numel() * tensor.element_size()))


def on_threads(world: int, body: Callable[[Comm], Result]) -> list[Result]:
    """Run `body` on so many ranks; return what each returned.

    Raises:
        Exception: what a rank raised, or a BrokenBarrierError if ranks wait for each other.
    """
    return run_threaded(world, lambda collective: body(Comm(collective)), timeout_seconds=SECONDS)
