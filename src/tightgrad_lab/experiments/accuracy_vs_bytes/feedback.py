"""What feedback is worth with momentum and without: many methods, a small network, each at the best of several rates.

    Karimireddy et al. 2019, arXiv:1901.09847 (error feedback); Lin et al. 2017, arXiv:1712.01887 (momentum correction).

One process sends its gradient to itself: encoded, decoded, and what was lost is kept. Momentum of 0.9 makes steps ten
times as long, so that rates are compared at equal rate / (1 - momentum); the rate is chosen on held-out samples.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightgrad.core.types import GradSpec
from tightgrad_lab.cases.image import CLASSES, ImageCase
from tightgrad_lab.experiments.accuracy_vs_bytes.methods import METHODS, SMALL

SENT = ("int4", "int2", "sign", "terngrad", "topk_10", "topk_1", "topk_01", "qsgd")
CORRECTED = ("topk_10", "topk_1", "topk_01")
MOMENTUM = 0.9
EQUAL_RATE = 0.3
BATCH, EPOCHS, HIDDEN, HELD_OUT = 64, 3, 64, 1000
FLOAT_NBYTES = 4


@dataclass(frozen=True)
class Arm:
    """One training.

    Args:
        method: a name in `METHODS`.
        feedback: "none", "error_feedback" or "momentum_correction".
        momentum: 0 or MOMENTUM.
        rate: learning rate over (1 - momentum).
        seed: of weights and order.
    """

    method: str
    feedback: str
    momentum: float
    rate: float
    seed: int


class Sender:
    """Encodes and decodes the gradients of a model, and keeps what is lost as the arm says."""

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.codec = METHODS[arm.method].compress(0).codec
        self.generator = torch.Generator().manual_seed(arm.seed)
        self.kept: dict[str, Tensor] = {}
        self.velocity: dict[str, Tensor] = {}
        self.sent = self.dense = 0

    def send(self, name: str, grad: Tensor) -> Tensor:
        """What arrives of a gradient."""
        self.dense += grad.numel() * FLOAT_NBYTES
        corrected = self.arm.feedback == "momentum_correction"
        if corrected:
            grad = MOMENTUM * self.velocity.get(name, torch.zeros_like(grad)) + grad
        if self.codec is None or grad.numel() < SMALL:
            self.velocity[name] = grad
            self.sent += grad.numel() * FLOAT_NBYTES
            return grad
        whole = grad if self.arm.feedback == "none" else grad + self.kept.get(name, torch.zeros_like(grad))
        payload = self.codec.encode(whole.flatten(), GradSpec.of(name, whole), self.generator)
        self.sent += payload.nbytes
        arrived = self.codec.decode(payload).view_as(whole)
        self.kept[name] = whole - arrived
        if corrected:
            self.velocity[name] = torch.where(arrived != 0, torch.zeros_like(grad), grad)
        return arrived


@cache
def _data() -> tuple[tuple[Tensor, Tensor], ...]:
    """Images and labels to train on, to choose the rate on, and to test on."""
    case = ImageCase()
    train, test = case.load()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    parts = ((train, order[HELD_OUT:]), (train, order[:HELD_OUT]), (test, torch.arange(len(test))))
    return tuple((images.flatten(1), labels) for images, labels in (case.batch(*part) for part in parts))


def train(arm: Arm) -> dict[str, Any]:
    """Train; return "held_out" and "accuracy" (test), 0 if the loss was not finite, and the compression "factor"."""
    (images, labels), held_out, test = _data()
    torch.manual_seed(arm.seed)
    model = nn.Sequential(nn.Linear(images.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    own = 0.0 if arm.feedback == "momentum_correction" else arm.momentum
    optimizer = torch.optim.SGD(model.parameters(), arm.rate * (1 - arm.momentum), own)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    sender = Sender(arm)
    order = torch.cat([torch.randperm(len(images)) for _ in range(EPOCHS)])
    for indices in order[: steps * BATCH].split(BATCH):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[indices]), labels[indices])
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            parameter.grad = sender.send(name, parameter.grad)
        optimizer.step()
        schedule.step()
        if not math.isfinite(float(loss.detach())):
            break
    found = {"held_out": _accuracy(model, *held_out), "accuracy": _accuracy(model, *test)}
    return {**found, "factor": sender.dense / sender.sent}


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).double().mean())


def make_arms(methods: Iterable[str], rates: Iterable[float], seeds: int) -> list[Arm]:
    """Each method without and with feedback, the sparse ones also with corrected momentum; and dense."""
    places = [("dense", "none", momentum) for momentum in (0.0, MOMENTUM)]
    for method in methods:
        places += [(method, kind, m) for m in (0.0, MOMENTUM) for kind in ("none", "error_feedback")]
        places += [(method, "momentum_correction", MOMENTUM)] * (method in CORRECTED)
    return [Arm(*place, rate, seed) for place in places for rate in rates for seed in range(seeds)]


def rows(arms: list[Arm], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method, feedback and momentum: test accuracy by seed at its best rate, and at EQUAL_RATE."""
    groups: dict[tuple[str, str, float], dict[float, list[dict[str, Any]]]] = {}
    for arm, one in zip(arms, found, strict=True):
        groups.setdefault((arm.method, arm.feedback, arm.momentum), {}).setdefault(arm.rate, []).append(one)
    table = []
    for (method, feedback, momentum), by_rate in groups.items():
        best = max(by_rate, key=lambda rate, own=by_rate: fmean(one["held_out"] for one in own[rate]))  # type: ignore[misc]
        table.append(
            {
                "method": method,
                "feedback": feedback,
                "momentum": momentum,
                "rate": best,
                "factor": by_rate[best][0]["factor"],
                "accuracy": [one["accuracy"] for one in by_rate[best]],
                "accuracy_at_equal_rate": [one["accuracy"] for one in by_rate[EQUAL_RATE]],
            }
        )
    return table
