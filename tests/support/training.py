"""One small regression, for tests of the pipeline on plain modules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import tightgrad as tg
from support.waiting import THREADS_SECONDS
from tightgrad.collectives import ThreadedCollective, run_threaded


def linear(seed: int = 0) -> nn.Linear:
    """The same weights on every call."""
    model = nn.Linear(3, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def batches(num: int, rank: int = 0, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(size, 3, generator=generator) for _ in range(num)]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch[:, :2]).square().mean()


def train(pipe: tg.GradientPipeline, model: nn.Module, loader: Any) -> list[tg.StepRecord]:
    records = []
    for window in pipe.windows(loader):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        records.append(pipe.step())
    return records


def on_ranks(world_size: int, body: Callable[[ThreadedCollective], Any]) -> list[Any]:
    """Run on threaded ranks; what a rank raises is its result."""

    def caught(collective: ThreadedCollective) -> Any:
        try:
            return body(collective)
        except Exception as error:
            return error

    return run_threaded(world_size, caught, timeout_seconds=THREADS_SECONDS)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all tensors of model and optimizer."""
    state = [value for slot in optimizer.state.values() for value in slot.values() if isinstance(value, Tensor)]
    return [tensor.detach().clone() for tensor in (*model.state_dict().values(), *state)]
