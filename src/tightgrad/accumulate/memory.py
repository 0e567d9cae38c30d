"""How much memory a step needs on one rank, before it runs; and which micro-batch fits.

    peak = parameters + gradients + accumulator + optimizer state + residual
           + max(activations of one micro-batch, what the optimizer's step or the reduce hold for a moment)

All but the activations follows from shapes. The activations, with everything else that a backward holds for a moment,
are measured on one micro-batch (`measure_activations`), and grow with its samples. Gradients are there from the first
micro-batch on, so accumulation needs the memory of one micro-batch, whatever K is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.accumulate.live import LiveBytes
from tightgrad.accumulate.weights import num_samples
from tightgrad.core.check import check_choice, check_integer, check_number

FLOAT_NBYTES = 4
BUCKET_NBYTES = 32 * 2**20  # gradients that are encoded together
_PROBED = 64  # elements of each parameter of the optimizer's probe

Sums = Literal["once", "shards", "unsharded"]
SUMS = ("once", "shards", "unsharded")


@dataclass(frozen=True, slots=True)
class OptimizerMemory:
    """What an optimizer holds.

    Attributes:
        state_nbytes: for each byte of a parameter, from the first step on.
        step_nbytes: for each byte of what is stepped at once, for a moment.
        steps_all: whether that is all parameters (foreach) or the largest one (a loop over parameters).
    """

    state_nbytes: float
    step_nbytes: float
    steps_all: bool


def optimizer_memory(optimizer: torch.optim.Optimizer) -> OptimizerMemory:
    """Measure what `optimizer` holds, by two steps of one like it over small parameters on the same device.

    Of its groups, the first one's settings are taken.
    """
    group = optimizer.param_groups[0]
    device = group["params"][0].device
    settings = {key: value for key, value in group.items() if key in optimizer.defaults}
    one, two = (_step_peak(type(optimizer), settings, device, count) for count in (1, 2))
    nbytes = _PROBED * FLOAT_NBYTES
    return OptimizerMemory(one[0] / nbytes, one[1] / nbytes, two[1] > 1.5 * one[1])


def _step_peak(
    kind: type[torch.optim.Optimizer], settings: dict[str, Any], device: torch.device, count: int
) -> tuple[float, float]:
    """Bytes of state of each parameter, and of what the second step made for a moment."""
    parameters = [torch.nn.Parameter(torch.zeros(_PROBED, device=device)) for _ in range(count)]
    optimizer = kind([{"params": parameters, **settings}], **_required(settings))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with LiveBytes() as live:
        optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    large = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor.numel() >= _PROBED)
    return large / count, float(live.peak)


def _required(settings: dict[str, Any]) -> dict[str, Any]:
    """Some optimizers cannot be made without a rate of their own."""
    return {"lr": settings["lr"]} if "lr" in settings else {}


def measure_activations(loss_of: Callable[[Any], Tensor], batch: Any, parameters: Iterable[Tensor]) -> float:
    """Bytes for each sample that forward and backward of a micro-batch need beside parameters and gradients.

    Runs both twice, and leaves the parameters without gradients. BatchNorm statistics and random numbers move on.

    Args:
        loss_of: gives a batch's loss.
        batch: one micro-batch, of at least one sample.
        parameters: all that get gradients.
    """
    held = list(parameters)
    loss_of(batch).backward()
    with LiveBytes() as live:
        loss_of(batch).backward()
    for parameter in held:
        parameter.grad = None
    return float(live.peak) / max(1, num_samples(batch))


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one rank at the fullest moment of a step.

    Attributes:
        parameters: all of this rank, trainable or not.
        gradients: in the parameters' dtype.
        accumulator: float32 sums of low-precision gradients, or FSDP2's unsharded gradients.
        optimizer_state: from the first step on.
        residual: of error feedback.
        activations: of one micro-batch, and what its backward makes for a moment.
        stepping: what the reduce or the optimizer make for a moment, after the last backward.
    """

    parameters: int
    gradients: int
    accumulator: int
    optimizer_state: int
    residual: int
    activations: int
    stepping: int

    @property
    def total(self) -> int:
        """The peak."""
        always = self.parameters + self.gradients + self.accumulator + self.optimizer_state + self.residual
        return always + max(self.activations, self.stepping)


def estimate_memory(
    parameters: Iterable[Tensor],
    *,
    micro_batch: int,
    activation_nbytes: float,
    optimizer: OptimizerMemory,
    sums: Sums = "once",
    shards: int = 1,
    compresses: bool = False,
    residual_itemsize: float = 0.0,
) -> MemoryEstimate:
    """Add up what a step needs. Reads shapes, dtypes and `requires_grad` only, so parameters may be on "meta".

    Args:
        parameters: of the whole model, each once.
        micro_batch: samples of a micro-batch, at least 1.
        activation_nbytes: for each sample, from `measure_activations`.
        optimizer: from `optimizer_memory`.
        sums: where gradients add up: "once" where they are (one device, DDP), "shards" (FSDP2, `sync="every"`), or
            "unsharded" (FSDP2, `sync="last"`).
        shards: ranks that parameters, gradients and optimizer state are divided over, at least 1.
        compresses: whether the pipeline reduces compressed gradients.
        residual_itemsize: bytes of each element's residual: 4 for float32, 0 without feedback.
    """
    check_integer("micro_batch", micro_batch, low=1)
    check_integer("shards", shards, low=1)
    check_number("activation_nbytes", activation_nbytes, low=0.0)
    check_number("residual_itemsize", residual_itemsize, low=0.0)
    check_choice("sums", sums, SUMS)
    everything = list(parameters)
    trained = [tensor for tensor in everything if tensor.requires_grad]
    held, gradients = _nbytes(everything), _nbytes(trained)
    low = [tensor for tensor in trained if tensor.dtype in LOW_PRECISION]
    accumulator = _numel(low) * FLOAT_NBYTES / shards
    if sums == "unsharded":
        accumulator += _numel(trained) * FLOAT_NBYTES
    residual = _numel(trained) * residual_itemsize
    stepped = gradients if optimizer.steps_all else max((_nbytes([tensor]) for tensor in trained), default=0)
    reducing = 0.0
    if compresses:  # the sums over ranks, the residual after the step, and a bucket: compensated, sent, received
        floats = _numel(trained) * FLOAT_NBYTES
        reducing = floats + residual + 3 * min(floats, BUCKET_NBYTES)
    return MemoryEstimate(
        parameters=round(held / shards),
        gradients=round(gradients / shards),
        accumulator=round(accumulator),
        optimizer_state=round(gradients * optimizer.state_nbytes / shards),
        residual=round(residual),
        activations=round(activation_nbytes * micro_batch),
        stepping=round(max(stepped * optimizer.step_nbytes / shards, reducing)),
    )


def largest_micro_batch(estimate: MemoryEstimate, micro_batch: int, available_nbytes: float) -> int:
    """The most samples of a micro-batch that fit.

    Args:
        estimate: for a micro-batch of `micro_batch` samples.
        micro_batch: at least 1.
        available_nbytes: on the device, for everything.

    Returns:
        At least 1 if a micro-batch of one sample fits, else 0.
    """
    check_integer("micro_batch", micro_batch, low=1)
    without = replace(estimate, activations=0)
    if without.total > available_nbytes:
        return 0
    left = available_nbytes - (without.total - without.stepping)
    per_sample = estimate.activations / micro_batch
    return int(left // per_sample) if per_sample else micro_batch


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
