"""A run that is stopped and taken up again, and one that is not, compared to the bit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import tightgrad as tg

UNCOMPARED = ("stage_seconds", "memory_bytes")


@dataclass
class Run:
    """A training loop's objects, and what `tg.save` and `tg.load` are given of them."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    pipe: tg.GradientPipeline
    loss: Callable[[nn.Module, Any], Tensor]
    given: dict[str, Any] = field(default_factory=dict)
    after_step: Callable[[tg.StepRecord], Any] = lambda record: None

    def train(self, batches: Any, stop: int | None = None) -> list[tg.StepRecord]:
        """Train; after `stop` micro-batches, and where these end a window after its step, leave the loop."""
        records: list[tg.StepRecord] = []
        done = 0
        if stop == 0:
            return records
        for window in self.pipe.windows(batches):
            for batch in window:
                self.pipe.backward(self.loss(self.model, batch))
                done += 1
                if done == stop and done % (self.pipe.parts.plan.accumulate.micro_batches or 1):
                    return records
            records.append(self.pipe.step())
            self.after_step(records[-1])
            if done == stop:
                return records
        return records

    def save(self, folder: Any, **more: Any) -> Any:
        return tg.save(folder, self.model, self.optimizers, self.pipe, **self.given, **more)

    def load(self, folder: Any, **more: Any) -> int:
        return tg.load(folder, self.model, self.optimizers, self.pipe, **self.given, **more)

    def state(self) -> dict[str, Any]:
        """Everything that a step changes, copied."""
        held = {"model": self.model.state_dict(), "pipe": self.pipe.state_dict(), "rng": torch.get_rng_state()}
        for number, optimizer in enumerate(self.optimizers):
            held[f"optimizer {number}"] = optimizer.state_dict()
        for name, given in {**self.given, **self.given.get("extra", {})}.items():
            for one in given if isinstance(given, list) else [given]:
                if hasattr(one, "state_dict"):
                    held[f"{name} {type(one).__name__}"] = one.state_dict()
        return flat(held)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by path; tensors are copied, of sharded ones this rank's part."""
    if isinstance(value, dict):
        return {key: leaf for name, inner in value.items() for key, leaf in flat(inner, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), path)
    if isinstance(value, Tensor):
        return {path: (value.to_local() if hasattr(value, "to_local") else value).detach().clone()}
    return {path: value}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of leaves that are not the same to the bit."""
    return [key for key in sorted({*one, *other}) if not same(one.get(key), other.get(key))]


def same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return bool(one == other)
    return str(one.dtype) == str(other.dtype) and one.shape == other.shape and torch.equal(bits(one), bits(other))


def bits(tensor: Tensor) -> Tensor:
    """Bytes, in which NaN is equal to itself."""
    return tensor.cpu().contiguous().view(-1).view(torch.uint8)


def compared(records: list[tg.StepRecord]) -> list[dict[str, Any]]:
    """What must be equal in two runs' records."""
    return [{key: value for key, value in record.to_dict().items() if key not in UNCOMPARED} for record in records]
