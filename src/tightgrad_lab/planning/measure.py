"""Codec speed and backward of this machine, measured with the user's own model."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.collectives import run_threaded
from tightgrad.core.protocols import Collective
from tightgrad_lab.environment import usable_cores
from tightgrad_lab.planning.cost import Compute, PathCost
from tightgrad_lab.planning.link import Call
from tightgrad_lab.planning.recording import RecordingCollective

WARM_UP = 2
THREAD_SECONDS = 300.0
Loss = Callable[[nn.Module, Any], Tensor]


def measure_compute(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, batches: Iterator[Any], repeats: int
) -> Compute:
    """Time forward, backward and optimizer of steps of one micro-batch, on the host's clock."""
    rows = []
    for _ in range(repeats + WARM_UP):
        marks = [time.perf_counter()]
        value = loss(model, next(batches))
        marks.append(time.perf_counter())
        value.backward()
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        rows.append([stop - start for start, stop in pairwise(marks)])
    forward, backward, step = (statistics.median(column) for column in zip(*rows[WARM_UP:], strict=True))
    return Compute(forward, backward, step)


def crowding(local_ranks: int) -> float:
    """How many ranks share a core."""
    return max(1.0, local_ranks / usable_cores())


def measure_path(model: nn.Module, plan: tg.Plan, ranks: int, repeats: int, crowd: float = 1.0) -> PathCost:
    """Run the path of `plan` over random gradients of the model's shapes on ranks that are threads; time rank 0's.

    A thread's own processor time is taken, so the others, which run beside it, do not count; `crowd` is how many ranks
    share a core in training.
    """

    def body(collective: Collective) -> PathCost:
        torch.set_num_threads(1)
        return _path_of_rank(copy.deepcopy(model), plan, collective, repeats)

    found = run_threaded(ranks, body, timeout_seconds=THREAD_SECONDS)[0]
    return replace(found, seconds=crowd * found.seconds)


def _path_of_rank(model: nn.Module, plan: tg.Plan, collective: Collective, repeats: int) -> PathCost:
    recording = RecordingCollective(collective, [])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pipe = tg.attach(model, _Nothing(parameters, {}), plan, collective=recording)
    recording.calls.clear()
    generator = torch.Generator().manual_seed(collective.rank)
    drawn = [torch.randn(p.shape, generator=generator).mul_(1e-3) for p in parameters]
    seconds: list[float] = []
    calls: tuple[Call, ...] = ()
    for index, window in enumerate(pipe.windows(range(repeats + WARM_UP))):
        for _ in window:
            pipe.backward(_gives(parameters, drawn, 1.0 + 0.01 * index))
        start = time.thread_time()
        pipe.step()
        seconds.append(time.thread_time() - start)
        if index == WARM_UP - 1:
            recording.calls.clear()
        if index == WARM_UP:  # later, the end of the loader adds an exchange that is in no step
            calls = tuple(recording.calls)
    return PathCost(statistics.median(seconds[WARM_UP:]), calls)


class _Nothing(torch.optim.Optimizer):
    """Its step is not a part of the path."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Leave the weights."""


class _Gives(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, scale: float, drawn: list[Tensor], *parameters: Tensor) -> Tensor:
        """Nothing."""
        ctx.scale, ctx.drawn = scale, drawn
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """What was drawn."""
        return None, None, *(each * ctx.scale for each in ctx.drawn)


def _gives(parameters: list[nn.Parameter], drawn: list[Tensor], scale: float) -> Tensor:
    value: Tensor = _Gives.apply(scale, drawn, *parameters)  # type: ignore[no-untyped-call]
    return value
