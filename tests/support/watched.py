"""Collectives that note when an all-gather begins and when it is waited for, and loaders that fail."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import tightgrad as tg
from support.training import loss_of
from tightgrad.collectives import SingleCollective, ThreadedCollective


class Watched:
    """Notes when an all-gather begins, and when it is waited for: only then do threads exchange anything."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.events: list[str] = []

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        self.events.append("begun")
        tensor = tensor.clone()

        def receive() -> Tensor:
            self.events.append("waited")
            return self.all_gather(tensor)

        return receive


class Alone(Watched, SingleCollective):
    """One rank."""


class HasTwin(Watched, SingleCollective):
    """Rank 0 of two that fetch the same."""

    world_size = 2

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor])


class _Rank(Watched, ThreadedCollective):
    pass


def watched(collective: ThreadedCollective) -> _Rank:
    """The same rank, watched."""
    return _Rank(collective.rank, collective.world_size, collective._exchange)


def failing_at(position: int, loader: Sequence[Any]) -> Iterator[Any]:
    """The first batches, and then an error."""
    yield from loader[:position]
    raise OSError("the disk is gone")


def events_of_a_window(
    collective: Watched, pipe: tg.GradientPipeline, model: nn.Module, loader: Sequence[Any]
) -> list[str]:
    """What happens in the first window, in order."""
    windows = pipe.windows(loader)
    window = next(windows, None)
    if window is None:
        return collective.events
    for batch in window:
        loss = loss_of(model, batch)
        collective.events.append("forward")
        pipe.backward(loss)
        collective.events.append("backward")
    pipe.step()
    return collective.events
