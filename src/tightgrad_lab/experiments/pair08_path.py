"""The stages of a clipped step, run one after the other with a clock and a byte counter around each.

They are the functions that the pipeline calls, in its order; a test holds the two to the same weights.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.clip.fold import folded
from tightgrad.clip.one_factor import clip_coefficient
from tightgrad.clip.placed import scale_
from tightgrad_lab.bench.passes import MemoryTraffic
from tightgrad_lab.experiments import byte_model

STAGES = ("backward", "norm", "factor", "multiply", "optimizer")
LANES = ("below", "multiply", "fold", "torch")
"""A bound that is not reached; one that is, multiplied or folded into the optimizer; torch's two functions."""
BELOW, ABOVE = 10.0, 0.5  # bound over the norm
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Lane:
    """What is measured.

    Args:
        name: in LANES.
        warm_up: steps that are not counted.
        steps: steps that are.
        micro_batches: of each step.
        batch_size: pieces of text of one micro-batch.
    """

    name: str
    warm_up: int
    steps: int
    micro_batches: int
    batch_size: int


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
        self.norm = torch.nn.utils.get_total_norm(self.grads) if self.name == "torch" else tg.get_total_norm(self.grads)

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


def measure_lane(lane: Lane) -> dict[str, Any]:
    """Train a few steps.

    Returns:
        Median "seconds" of each stage; its "memory_bytes" of one step, None for the backward; "num_parameters";
        median "grad_norm" and "clip_coef".
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    walk = Walk(lane.name, byte_model.ByteTransformer())
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    norms, coefficients = [], []
    memory: dict[str, int | None] = {}
    for step in range(lane.warm_up + lane.steps + 1):
        walk.optimizer.zero_grad()
        pieces = [byte_model.batch(lane.batch_size, generator) for _ in range(lane.micro_batches)]
        for name, run in walk.stages(pieces).items():
            if step == lane.warm_up + lane.steps:
                memory[name] = _memory(name, run)
                continue
            start = time.perf_counter()
            run()
            if step >= lane.warm_up:
                seconds[name].append(time.perf_counter() - start)
        norms.append(float(walk.norm))
        coefficients.append(min(1.0, walk.bound / norms[-1]))
    return {
        "lane": lane.name,
        "seconds": {stage: statistics.median(found) for stage, found in seconds.items()},
        "memory_bytes": memory,
        "num_parameters": sum(parameter.numel() for parameter in walk.model.parameters()),
        "grad_norm": statistics.median(norms),
        "clip_coef": statistics.median(coefficients),
    }


def _memory(name: str, run: Callable[[], None]) -> int | None:
    """Bytes that a stage reads and writes; that of a whole backward says nothing about clipping."""
    if name == "backward":
        run()
        return None
    with MemoryTraffic() as traffic:
        run()
    return traffic.nbytes
