"""Networks of many convolutions with and without shortcuts, trained for some hundred steps on small images.

He et al. 2016, Deep Residual Learning, doi 10.1109/CVPR.2016.90.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightgrad_lab.cases.image import ImageCase
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.training.files import finite

CHANNELS, BATCH, RATE, MOMENTUM, LAST = 8, 32, 0.1, 0.9, 30


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        layers: convolutions in blocks of two, with one before and a classifier after them.
        shortcuts: whether a block adds its input to its output.
        seed: of weights and batches.
        steps: of training.
    """

    layers: int
    shortcuts: bool
    seed: int
    steps: int


class Block(nn.Module):
    """Two convolutions with batch normalisation, as in the paper's figure 2; the shortcut is optional."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(2))
        self.share = 1.0 if shortcut else 0.0

    def forward(self, features: Tensor) -> Tensor:
        """Shape (n, CHANNELS, height, width) to the same shape."""
        inner = functional.relu(self.norms[0](self.first(features)))
        return functional.relu(self.norms[1](self.second(inner)) + self.share * features)


def network(run: Run) -> nn.Module:
    """Return a network of `layers` weight layers for images of shape (n, 1, 28, 28)."""
    stem = nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1, bias=False)
    blocks = [Block(run.shortcuts) for _ in range((run.layers - 2) // 2)]
    ends = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10))
    model = nn.Sequential(stem, nn.BatchNorm2d(CHANNELS), nn.ReLU(), *blocks, *ends)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def train(run: Run) -> float | None:
    """Return the mean training loss over the last steps, or None if it is not finite."""
    case = ImageCase()
    samples, _ = case.load()
    torch.manual_seed(run.seed)
    model = network(run)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(run.seed)
    losses = []
    for _ in range(run.steps):
        indices = torch.randint(len(samples), (BATCH,), generator=generator)
        images, labels = case.batch(samples, indices)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return finite(fmean(losses[-LAST:]))


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        layers: of the networks, with and without shortcuts.
        steps: of training.
        seeds: how many trainings differ in nothing but their random numbers.
    """

    layers: tuple[int, ...]
    steps: int
    seeds: int


class Depth(Experiment[Settings]):
    """Shallow and deep, plain and with shortcuts."""

    def settings(self, *, full: bool) -> Settings:
        """Some seconds, or a minute."""
        return Settings((8, 32), steps=120, seeds=3) if full else Settings((4, 8), steps=4, seeds=1)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Train all; the deepest, which take the longest, first."""
        jobs = [
            Run(layers, shortcuts, seed, settings.steps)
            for layers in sorted(settings.layers, reverse=True)
            for shortcuts in (False, True)
            for seed in range(settings.seeds)
        ]
        found = dict(zip(jobs, run_all(train, jobs, report), strict=True))
        rows: dict[tuple[int, bool], dict[str, Any]] = {}
        for run, loss in found.items():
            row = {"layers": run.layers, "shortcuts": run.shortcuts, "loss": []}
            rows.setdefault((run.layers, run.shortcuts), row)["loss"].append(loss)
        return Measured({"batch": BATCH, "channels": CHANNELS, "last": LAST}, list(rows.values()))


EXPERIMENT = Depth()
