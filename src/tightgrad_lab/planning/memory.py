"""What a plan needs of memory on one rank, and the largest micro-batch that fits."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.core.errors import ConfigError
from tightgrad_lab.planning.estimate import (
    ActivationMemory,
    MemoryEstimate,
    OptimizerMemory,
    estimate_memory,
    largest_micro_batch,
    measure_activations,
    optimizer_memory,
)

FLOAT_NBYTES = 4
NO_ACTIVATIONS = ActivationMemory(0.0, 1, 0.0)


@dataclass(frozen=True)
class Held:
    """A parameter: how many numbers, of which dtype ("float32"), trained or frozen."""

    numel: int
    dtype: str
    requires_grad: bool


@dataclass(frozen=True)
class Footprint:
    """What the memory of every plan follows from.

    Args:
        parameters: of the model.
        optimizer: what it holds.
        activations: of a micro-batch; None where there is no model to measure, and memory is without them.
    """

    parameters: tuple[Held, ...]
    optimizer: OptimizerMemory
    activations: ActivationMemory | None

    @property
    def micro_batch(self) -> int:
        """Samples of the micro-batch that was measured."""
        return self.activations.samples if self.activations is not None else 1


def footprint(
    model: nn.Module, optimizer: torch.optim.Optimizer, measured: tuple[Callable[[Any], Tensor], Any] | None
) -> Footprint:
    """Measure.

    Args:
        model: whose parameters count.
        optimizer: whose state counts.
        measured: a loss of a micro-batch, and a micro-batch; None measures no activations.
    """
    parameters = list(model.parameters())
    held = tuple(Held(p.numel(), str(p.dtype).removeprefix("torch."), p.requires_grad) for p in parameters)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return Footprint(held, optimizer_memory(optimizer), _activations(measured, trained))


def _activations(
    measured: tuple[Callable[[Any], Tensor], Any] | None, trained: list[nn.Parameter]
) -> ActivationMemory | None:
    if measured is None:
        return None
    loss_of, batch = measured
    try:
        return measure_activations(loss_of, batch, trained)
    except ConfigError:  # a batch that has no samples of its own to count
        return None


def of_plan(about: Footprint, plan: tg.Plan) -> MemoryEstimate:
    """Bytes at the fullest moment of a step of `plan` under DDP, or on one device."""
    kept = [slot for slot in plan.slots.values() if slot.like_parameter]
    itemsize = sum(FLOAT_NBYTES if slot.storage is None else 1 for slot in kept)
    return estimate_memory(
        _on_meta(about.parameters),
        micro_batch=about.micro_batch,
        activations=about.activations or NO_ACTIVATIONS,
        optimizer=about.optimizer,
        compresses=plan.compress is not None,
        residual_itemsize=float(itemsize),
        keeps_gradients=plan.compress is not None
        and (plan.compress.fallback is not None or plan.compress.overlap == "backward"),
    )


def fitting(about: Footprint, plan: tg.Plan, available_nbytes: int) -> int | None:
    """The most samples of a micro-batch that fit beside `plan`; None where activations were not measured."""
    if about.activations is None:
        return None
    return largest_micro_batch(of_plan(about, plan), about.activations, available_nbytes)


def available_nbytes(local_ranks: int) -> int:
    """This rank's part of the memory of this machine (the GPU's, where there is one)."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local_ranks


def _on_meta(parameters: Sequence[Held]) -> Iterable[Tensor]:
    for held in parameters:
        yield torch.empty(held.numel, dtype=getattr(torch, held.dtype), device="meta", requires_grad=held.requires_grad)
