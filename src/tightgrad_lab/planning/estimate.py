"""How much memory a step needs on one rank, before it runs; and which micro-batch fits.

    peak = parameters + gradients + accumulator + optimizer state + residual
           + max(activations of one micro-batch, what the optimizer's step or the reduce hold for a moment)

All but the activations follows from shapes. The activations, with everything else that a backward holds for a moment,
are measured on one micro-batch (`measure_activations`), and grow with its samples. Gradients are there from the first
micro-batch on, so accumulation needs the memory of one micro-batch, whatever K is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.accumulate.split import split_batch
from tightgrad.accumulate.weights import num_samples
from tightgrad.core.check import check_choice, check_integer, check_number
from tightgrad_lab.planning.live_bytes import LiveBytes

FLOAT_NBYTES = 4
BUCKET_NBYTES = 32 * 2**20  # gradients that are encoded together
_PROBED = 64  # elements of each parameter of the optimizer's probe
_MANY = 8  # parameters of the larger probe

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
    one, many = (_step_peak(type(optimizer), settings, device, count) for count in (1, _MANY))
    nbytes = _PROBED * FLOAT_NBYTES
    steps_all = many[1] > _MANY / 2 * one[1]
    return OptimizerMemory(one[0] / nbytes, (many[1] / _MANY if steps_all else one[1]) / nbytes, steps_all)


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


@dataclass(frozen=True, slots=True)
class ActivationMemory:
    """What forward and backward of a micro-batch hold for a moment, beside parameters and sums of gradients.

    The peak is the largest of several moments, each a constant and a part for every sample, so it is convex in the
    number of samples. Between the two measured sizes the straight line between them bounds it; above them, the larger
    one's bytes for each sample do.

    Attributes:
        one_nbytes: with one sample.
        samples: of the larger micro-batch.
        nbytes: with these.
    """

    one_nbytes: float
    samples: int
    nbytes: float

    def of(self, micro_batch: int) -> float:
        """Bytes with so many samples, at least 1."""
        if micro_batch >= self.samples:
            return self.nbytes * micro_batch / self.samples
        return self.one_nbytes + (self.nbytes - self.one_nbytes) * (micro_batch - 1) / (self.samples - 1)

    def most_samples(self, nbytes: float) -> int:
        """The most samples whose bytes are at most `nbytes`; 0 if not even one's are."""
        if nbytes >= self.nbytes:
            return int(nbytes * self.samples / self.nbytes)
        if nbytes < self.one_nbytes:
            return 0
        return int(1 + (nbytes - self.one_nbytes) / (self.nbytes - self.one_nbytes) * (self.samples - 1))


def measure_activations(loss_of: Callable[[Any], Tensor], batch: Any, parameters: Iterable[Tensor]) -> ActivationMemory:
    """Measure one micro-batch and its first sample, on the model's device.

    Runs forward and backward four times, and leaves the parameters without gradients. BatchNorm statistics and random
    numbers move on.

    Args:
        loss_of: gives a batch's loss.
        batch: one micro-batch, of at least one sample.
        parameters: all that get gradients.

    Raises:
        ConfigError: the batch has no sample, or its tensors differ in their first dimension.
    """
    held, samples = list(parameters), num_samples(batch)
    check_integer("the samples of the measured micro-batch", samples, low=1)
    one = split_batch(batch, samples)[0]
    large = _backward_peak(loss_of, batch, held)
    small = _backward_peak(loss_of, one, held) if samples > 1 else large
    return ActivationMemory(min(small, large), samples, large)


def _backward_peak(loss_of: Callable[[Any], Tensor], batch: Any, parameters: list[Tensor]) -> float:
    """Most bytes that a second backward makes: the sums that it adds to are there."""
    loss_of(batch).backward()
    for parameter in parameters:
        if parameter.dtype in LOW_PRECISION:  # moved to float32 after each backward
            parameter.grad = None
    with LiveBytes() as live:
        loss_of(batch).backward()
    for parameter in parameters:
        parameter.grad = None
    return float(live.peak)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on one rank at the fullest moment of a step.

    Attributes:
        parameters: all of this rank, trainable or not.
        gradients: float32 and float64 ones, where autograd adds them up.
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
        """Return the bytes at the peak."""
        always = self.parameters + self.gradients + self.accumulator + self.optimizer_state + self.residual
        return always + max(self.activations, self.stepping)


def estimate_memory(
    parameters: Iterable[Tensor],
    *,
    micro_batch: int,
    activations: ActivationMemory,
    optimizer: OptimizerMemory,
    sums: Sums = "once",
    shards: int = 1,
    compresses: bool = False,
    residual_itemsize: float = 0.0,
    keeps_gradients: bool = False,
) -> MemoryEstimate:
    """Add up what a step needs. Reads shapes, dtypes and `requires_grad` only, so parameters may be on "meta".

    Args:
        parameters: of the whole model, each once.
        micro_batch: samples of a micro-batch, at least 1.
        activations: from `measure_activations`.
        optimizer: from `optimizer_memory`.
        sums: where gradients add up: "once" where they are (one device, DDP), "shards" (FSDP2, `sync="every"`), or
            "unsharded" (FSDP2, `sync="last"`).
        shards: ranks that parameters, gradients and optimizer state are divided over, at least 1.
        compresses: whether the pipeline reduces compressed gradients.
        residual_itemsize: bytes of each element's residual: 4 for float32, 0 without feedback.
        keeps_gradients: whether they are needed after they were sent, for a fallback, or handed over during backward;
            if not, a new float32 residual takes their place.
    """
    check_integer("micro_batch", micro_batch, low=1)
    check_integer("shards", shards, low=1)
    check_number("residual_itemsize", residual_itemsize, low=0.0)
    check_choice("sums", sums, SUMS)
    everything = list(parameters)
    trained = [tensor for tensor in everything if tensor.requires_grad]
    held, gradients = _nbytes(everything), _nbytes(trained)
    low = [tensor for tensor in trained if tensor.dtype in LOW_PRECISION]
    delivered = _nbytes(low)  # in the parameters' dtype, for the optimizer
    accumulator = _numel(low) * FLOAT_NBYTES / shards
    if sums == "unsharded":
        accumulator += _numel(trained) * FLOAT_NBYTES
    residual = _numel(trained) * residual_itemsize
    stepped = gradients if optimizer.steps_all else max((_nbytes([tensor]) for tensor in trained), default=0)
    reducing = 0.0
    if compresses:  # the sums over ranks, the residual after the step (what the bucket leaves), one bucket decoded
        floats = _numel(trained) * FLOAT_NBYTES
        in_place = residual_itemsize == FLOAT_NBYTES and not keeps_gradients
        reducing = floats + (0.0 if in_place else residual) + min(floats, BUCKET_NBYTES)
    return MemoryEstimate(
        parameters=round(held / shards),
        gradients=round((gradients - delivered) / shards),
        accumulator=round(accumulator),
        optimizer_state=round(gradients * optimizer.state_nbytes / shards),
        residual=round(residual),
        activations=round(activations.of(micro_batch)),
        stepping=round(max((delivered + stepped * optimizer.step_nbytes) / shards, reducing)),
    )


def largest_micro_batch(estimate: MemoryEstimate, activations: ActivationMemory, available_nbytes: float) -> int:
    """The most samples of a micro-batch that fit.

    Args:
        estimate: for any micro-batch.
        activations: that it was made from.
        available_nbytes: on the device, for everything.

    Returns:
        At least 1 if a micro-batch of one sample fits, else 0.
    """
    always = estimate.total - max(estimate.activations, estimate.stepping)
    if always + estimate.stepping > available_nbytes:
        return 0
    return activations.most_samples(available_nbytes - always)


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
