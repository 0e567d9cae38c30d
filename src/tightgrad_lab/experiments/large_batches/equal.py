"""One batch in one piece, and the same batch accumulated: the same training, step by step."""

from typing import Any

import torch

import tightgrad as tg
from tightgrad_lab.cases.image import ImageCase
from tightgrad_lab.experiments.large_batches.train import MOMENTUM, WEIGHT_DECAY

STEPS = 100
MICRO_BATCHES = 8


def step_losses(batch: int, micro_batches: int, rate: float, dtype: torch.dtype, steps: int = STEPS) -> list[float]:
    """Train SGD with momentum at a constant rate; return the mean loss over the batch of each step."""
    case = ImageCase()
    torch.manual_seed(0)
    model = case.model().to(dtype)
    samples, _ = case.load()
    order = torch.randint(len(samples), (steps, micro_batches, batch // micro_batches))
    optimizer = torch.optim.SGD(model.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(micro_batches)))
    found = []
    for window in pipe.windows(case.batch(samples, part) for part in order.flatten(0, 1)):
        total = 0.0
        for images, labels in window:
            loss = case.loss(model, (images.to(dtype), labels))
            pipe.backward(loss)
            total += float(loss.detach()) / micro_batches
        pipe.step()
        found.append(total)
    return found


def equal(batch: int, rate: float, steps: int = STEPS) -> dict[str, Any]:
    """Both ways over the same samples in float64, and how far apart rounding drives them, there and in float32."""
    ways = {
        dtype: [step_losses(batch, pieces, rate, dtype, steps) for pieces in (1, MICRO_BATCHES)]
        for dtype in (torch.float64, torch.float32)
    }
    apart = {dtype: max(abs(a - b) for a, b in zip(*both, strict=True)) for dtype, both in ways.items()}
    whole, accumulated = ([float(f"{loss:.5g}") for loss in losses] for losses in ways[torch.float64])
    return {
        "batch": batch,
        "micro_batches": MICRO_BATCHES,
        "rate": rate,
        "whole": whole,
        "accumulated": accumulated,
        "largest_difference": apart[torch.float64],
        "largest_difference_float32": apart[torch.float32],
    }
