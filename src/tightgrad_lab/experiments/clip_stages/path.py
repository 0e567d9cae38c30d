"""The stages of a clipped step, run one after the other with a clock and a byte counter around each.

They are the functions that the pipeline calls, in its order; a test holds the two to the same weights.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tightgrad.clip.dtensor import scale_
from tightgrad.clip.fold import folded
from tightgrad.clip.norm import exact_norm
from tightgrad.clip.one_factor import clip_coefficient
from tightgrad_lab.bench.passes import MemoryTraffic
from tightgrad_lab.common import byte_model
from tightgrad_lab.schema.clipping import ClipLane

STAGES = ("backward", "norm", "factor", "multiply", "optimizer")
LANES = ("below", "multiply", "fold", "torch")
"""A bound that is not reached; one that is, multiplied or folded into the optimizer; torch's two functions."""
BELOW, ABOVE = 10.0, 0.5  # bound over the norm
LEARNING_RATE = 1e-3


class Walk:
    """One model and optimizer, and the stages of its steps.

    Args:
        name: of the lane.
        model: what is trained.
        bound: of the norm; None takes, in every step, a part or a multiple of its norm, as the lane wants it.
    """

    def __init__(self, name: str, model: nn.Module, bound: float | None = None) -> None:
        self.name = name
        self.model = model
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, LEARNING_RATE, fused=True)
        self.norm = torch.zeros(())
        self.coefficient = torch.ones(())
        self.fixed = bound

    @property
    def grads(self) -> list[Tensor]:
        """Those of all parameters."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    @property
    def bound(self) -> float:
        """Of this step."""
        return float(self.norm) * (BELOW if self.name == "below" else ABOVE) if self.fixed is None else self.fixed

    def backward(self, pieces: list[Tensor]) -> None:
        """Forward and backward of every micro-batch; gradients are those of their mean."""
        for part in pieces:
            (byte_model.loss(self.model, part) / len(pieces)).backward()

    @torch.no_grad()
    def measure(self) -> None:
        """Measure the norm."""
        self.norm = torch.nn.utils.get_total_norm(self.grads) if self.name == "torch" else exact_norm(self.grads)

    def find_factor(self) -> None:
        """Find the factor; torch's function does so while it multiplies."""
        if self.name != "torch":
            self.coefficient = clip_coefficient(self.norm, self.bound)

    @torch.no_grad()
    def multiply(self) -> None:
        """Multiply all gradients, unless the factor is folded."""
        if self.name == "torch":
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.bound, self.norm)
        elif self.name != "fold":
            scale_(self.grads, self.coefficient)

    def step(self) -> None:
        """Take the step."""
        with folded(self.optimizer, self.coefficient if self.name == "fold" else None):
            self.optimizer.step()

    def stages(self, pieces: list[Tensor]) -> dict[str, Callable[[], None]]:
        """The stages by name, in order."""
        return {
            "backward": lambda: self.backward(pieces),
            "norm": self.measure,
            "factor": self.find_factor,
            "multiply": self.multiply,
            "optimizer": self.step,
        }


class Measured:
    """What was measured of one lane so far."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.walk = Walk(name, byte_model.ByteTransformer())
        self.generator = torch.Generator().manual_seed(0)
        self.seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.memory: dict[str, int | None] = {}
        self.norms: list[float] = []
        self.coefficients: list[float] = []

    def step(self, micro_batches: int, batch_size: int, *, counted: bool) -> None:
        """Take a step under the clock."""
        pieces = self._begin(micro_batches, batch_size)
        for name, run in self.walk.stages(pieces).items():
            start = time.perf_counter()
            run()
            if counted:
                self.seconds[name].append(time.perf_counter() - start)
        self.norms.append(float(self.walk.norm))
        self.coefficients.append(min(1.0, self.walk.bound / self.norms[-1]))

    def weigh(self, micro_batches: int, batch_size: int) -> None:
        """Take a step and count the bytes that each stage reads and writes."""
        pieces = self._begin(micro_batches, batch_size)
        self.memory = {name: _memory(name, run) for name, run in self.walk.stages(pieces).items()}

    def _begin(self, micro_batches: int, batch_size: int) -> list[Tensor]:
        self.walk.optimizer.zero_grad()
        return [byte_model.batch(batch_size, self.generator) for _ in range(micro_batches)]


def measure_lanes(
    warm_up: int, steps: int, micro_batches: int, batch_size: int, report: Callable[[float], object]
) -> list[ClipLane]:
    """Train a few steps of every lane, in turn, so that all meet the same machine.

    Args:
        warm_up: steps that are not counted.
        steps: steps that are.
        micro_batches: of each step.
        batch_size: pieces of text of one micro-batch.
        report: told the share that is done.

    Returns:
        For each lane its name; median "seconds" of each stage; its "memory_bytes" of one step, None for the backward;
        "num_parameters"; median "grad_norm" and "clip_coef".
    """
    lanes = {name: Measured(name) for name in LANES}
    for step in range(warm_up + steps):
        for lane in lanes.values():
            lane.step(micro_batches, batch_size, counted=step >= warm_up)
        report((step + 1) / (warm_up + steps))
    found: list[ClipLane] = []
    for name, lane in lanes.items():
        lane.weigh(micro_batches, batch_size)
        found.append(
            {
                "lane": name,
                "seconds": {stage: statistics.median(values) for stage, values in lane.seconds.items()},
                "memory_bytes": lane.memory,
                "num_parameters": sum(parameter.numel() for parameter in lane.walk.parameters),
                "grad_norm": statistics.median(lane.norms),
                "clip_coef": statistics.median(lane.coefficients),
            }
        )
    return found


def _memory(name: str, run: Callable[[], None]) -> int | None:
    """Bytes that a stage reads and writes; that of a whole backward says nothing about clipping."""
    if name == "backward":
        run()
        return None
    with MemoryTraffic() as traffic:
        run()
    return int(traffic.nbytes)
