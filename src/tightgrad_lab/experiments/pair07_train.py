"""A small GPT on Shakespeare's plays into which outliers are injected: one training, alone in its process.

At chosen steps the batch is not text: every piece is one byte, repeated, and what is to be predicted is random. So
the gradients of all positions point the same way, as those of a broken shard of data do. All runs of a seed see the
same batches and the same outliers.
"""

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tightgrad as tg
from tightgrad.core.protocols import Clipper
from tightgrad_lab.experiments import byte_model
from tightgrad_lab.training.files import finite

HELD_OUT = 0.1
"""Share of the text, at its end, on which the final loss is measured."""
TEST_SEED, TEST_PIECES = 999_999, 128
BETAS = (0.9, 0.95)
WARMUP_STEPS = 20
QUIET_STEPS = 50
"""Outliers come after these, once the loss has left its steep beginning."""
RECENT = 20
SPIKE_NATS = 0.2
"""A loss that lies so far above the median of the RECENT ones before it is a spike."""

METHODS: dict[str, Clipper | None] = {
    "none": None,
    "global_norm": tg.clip.GlobalNorm(1.0),
    "agc": tg.clip.AGC(0.02, exclude=("head.*",)),
    "autoclip": tg.clip.AutoClip(percentile=10.0, warmup_steps=10),
    "zclip": tg.clip.ZClip(warmup_steps=25),
    "adagc": tg.clip.AdaGC(warmup_steps=25),
}


@dataclass(frozen=True)
class Run:
    """What is trained.

    Args:
        method: a name in METHODS.
        seed: of weights, batches and outliers.
        outliers: how many steps are spoilt.
        steps: of training.
        batch_size: pieces of text of one step.
        width: of the model.
        layers: of the model.
        learning_rate: of AdamW.
    """

    method: str
    seed: int
    outliers: int
    steps: int
    batch_size: int
    width: int
    layers: int
    learning_rate: float


def outlier_steps(run: Run) -> list[int]:
    """The steps that are spoilt, drawn from the seed."""
    places = range(QUIET_STEPS, run.steps - RECENT)
    return sorted(random.Random(run.seed).sample(places, run.outliers))


def train(run: Run) -> dict[str, Any]:
    """Train.

    Returns:
        "losses" of each step on its own batch (None: an outlier, or not finite); "outliers": their steps;
        "spikes": steps on text whose loss is a spike; "highest": how far above the median the highest of them is, in
        nats; "lost": what all of them are above it, added up; "final_loss" on held-out text; "clip_rate";
        "outlier_norm" and "usual_norm": median norm of the gradient before clipping.
    """
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    model = byte_model.ByteTransformer(run.width, run.layers)
    optimizer = torch.optim.AdamW(model.parameters(), run.learning_rate, BETAS)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS))
    clip = METHODS[run.method]
    pipe = tg.attach(model, optimizer, tg.Plan(clip=clip, guard=tg.Guard("propagate")), scheduler=warm)
    bad = set(outlier_steps(run))
    losses: list[float] = []
    norms: list[float] = []
    clipped = 0
    for window in pipe.windows(_batches(run, bad, generator)):
        for pieces in window:
            loss = byte_model.loss(model, pieces)
            pipe.backward(loss)
            losses.append(float(loss.detach()))
        record = pipe.step()
        assert record.grad_norm is not None
        norms.append(record.grad_norm)
        clipped += record.clip_coef is not None and record.clip_coef < 1.0
    return {
        "losses": [None if step in bad else _rounded(loss) for step, loss in enumerate(losses)],
        "outliers": sorted(bad),
        **spikes(losses, bad),
        "final_loss": finite(_held_out_loss(model)),
        "clip_rate": clipped / run.steps,
        "usual_norm": _rounded(statistics.median(norm for step, norm in enumerate(norms) if step not in bad)),
        "outlier_norm": _rounded(statistics.median(norms[step] for step in bad)) if bad else None,
    }


def spikes(losses: list[float], bad: set[int]) -> dict[str, Any]:
    """Count the steps on text, after the quiet ones, whose loss is SPIKE_NATS above the median of the RECENT before."""
    usual = [(step, loss) for step, loss in enumerate(losses) if step not in bad]
    heights = []
    for place, (step, loss) in enumerate(usual):
        before = [other for _, other in usual[max(0, place - RECENT) : place]]
        if step >= QUIET_STEPS and not loss <= statistics.median(before) + SPIKE_NATS:
            heights.append(loss - statistics.median(before))
    return {
        "spikes": len(heights),
        "highest": finite(max(heights, default=0.0)),
        "lost": finite(sum(heights)),
    }


def _batches(run: Run, bad: set[int], generator: torch.Generator) -> Iterator[Tensor]:
    text = byte_model.plays()
    text = text[: round(len(text) * (1 - HELD_OUT))]
    for step in range(run.steps):
        pieces = byte_model.cut(text, run.batch_size, generator)
        spoilt = _outlier(pieces, generator)
        yield spoilt if step in bad else pieces


def _outlier(pieces: Tensor, generator: torch.Generator) -> Tensor:
    """One byte of the piece, repeated."""
    chosen = torch.randint(byte_model.BYTES, (len(pieces), 1), generator=generator)
    return chosen.expand_as(pieces).clone()


@torch.no_grad()
def _held_out_loss(model: torch.nn.Module) -> float:
    text = byte_model.plays()
    text = text[round(len(text) * (1 - HELD_OUT)) :]
    return float(byte_model.loss(model, byte_model.cut(text, TEST_PIECES, torch.Generator().manual_seed(TEST_SEED))))


def _rounded(value: float) -> float | None:
    return finite(float(f"{value:.4g}"))
