"""A small GPT on Shakespeare's plays into which outliers are injected: one training, alone in its process.

At chosen steps what is to be predicted is wrong: each byte with its highest bit flipped, as a wrong decoding makes of
a shard of text. No such byte occurs in the plays, so the loss is high, and the gradients of all positions point
the same way. All runs of a seed see the same batches and the same outliers.
"""

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import tightgrad as tg
from tightgrad.core.protocols import Clipper
from tightgrad_lab.common import byte_model
from tightgrad_lab.schema.clipping import Spikes
from tightgrad_lab.training.files import finite

HELD_OUT = 0.1
"""Share of the text, at its end, on which the final loss is measured."""
TEST_SEED, TEST_PIECES = 999_999, 128
BETAS = (0.9, 0.999)
WARMUP_STEPS = 20
FLIPPED = 128
"""The bit of a byte that is flipped."""
QUIET_STEPS = 50
"""Outliers come after these, once the loss has left its steep beginning."""
BURST = 3
"""So many outliers come one after the other."""
BEFORE, AFTER = 10, 20
"""Steps before and after the first of them that are compared."""
SPIKE_NATS = 0.2
"""A rise of the loss that counts as a spike."""

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
        outliers: how often BURST steps are spoilt.
        steps: of training.
        batch_size: pieces of text of one step.
        width: of the model.
        layers: of the model.
        learning_rate: of AdamW.
        muon_rate: of Muon, which then steps the matrices of the layers; None leaves all to AdamW.
    """

    method: str
    seed: int
    outliers: int
    steps: int
    batch_size: int
    width: int
    layers: int
    learning_rate: float
    muon_rate: float | None = None


def outlier_steps(run: Run) -> list[int]:
    """The steps that are spoilt, drawn from the seed; what happens after some ends before the next."""
    places = range(QUIET_STEPS, run.steps - AFTER + 1, BEFORE + AFTER)
    starts = random.Random(run.seed).sample(places, run.outliers)
    return sorted(start + place for start in starts for place in range(BURST))


def train(run: Run) -> dict[str, Any]:
    """Train.

    Returns:
        "losses" of each step on its own batch (None: an outlier, or not finite); "norms" of the gradient at each step
        before clipping; "outliers": their steps; "final_loss" on held-out text; "clip_rate"; "outlier_norm" and
        "usual_norm": the median norms.
    """
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    model = byte_model.ByteTransformer(run.width, run.layers)
    optimizers = _optimizers(run, model)
    warm = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: min(1.0, (step + 1) / WARMUP_STEPS)) for one in optimizers
    ]
    clip = METHODS[run.method]
    plan = tg.Plan(clip=clip, guard=tg.Guard("propagate"))
    if len(optimizers) == 1:
        pipe = tg.attach(model, optimizers[0], plan, scheduler=warm[0])
    else:
        pipe = tg.attach(model, optimizers, plan, scheduler=warm)
    bad = set(outlier_steps(run))
    losses: list[float] = []
    norms: list[float] = []
    clipped = 0
    for window in pipe.windows(_batches(run, bad, generator)):
        for inputs, targets in window:
            scores = model(inputs)
            loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten())
            pipe.backward(loss)
            losses.append(float(loss.detach()))
        record = pipe.step()
        assert record.grad_norm is not None
        norms.append(record.grad_norm)
        clipped += record.clip_coef is not None and record.clip_coef < 1.0
    return {
        "losses": [None if step in bad else _rounded(loss) for step, loss in enumerate(losses)],
        "norms": [_rounded(norm) for norm in norms],
        "outliers": sorted(bad),
        "final_loss": finite(_held_out_loss(model)),
        "clip_rate": clipped / run.steps,
        "usual_norm": _rounded(statistics.median(norm for step, norm in enumerate(norms) if step not in bad)),
        "outlier_norm": _rounded(statistics.median(norms[step] for step in bad)) if bad else None,
    }


def _optimizers(run: Run, model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices of the layers and AdamW for what is left."""
    parameters = dict(model.named_parameters())
    matrices = [one for name, one in parameters.items() if one.ndim == 2 and name.startswith("encoder.")]
    if run.muon_rate is None:
        return [torch.optim.AdamW(parameters.values(), run.learning_rate, BETAS)]
    taken = {id(one) for one in matrices}
    rest = [one for one in parameters.values() if id(one) not in taken]
    muon = torch.optim.Muon(matrices, lr=run.muon_rate, weight_decay=0.0)
    return [muon, torch.optim.AdamW(rest, run.learning_rate, BETAS)]


def spikes(losses: Sequence[float | None], clean: Sequence[float | None], outliers: Sequence[int]) -> Spikes:
    """How far the loss on text rises after outliers, against training on the same batches without them.

    Args:
        losses: of each step; None at outliers, and where it is not finite.
        clean: of the training without outliers.
        outliers: their steps.

    Returns:
        "spikes": after how many outliers in a row the excess over `clean` rises by SPIKE_NATS, from its mean over the
        BEFORE steps before them, within AFTER steps; "highest" rise and "lost", the rises of all these steps added up,
        in nats: None if the loss was not finite.
    """
    excess = [
        math.nan if one is None or other is None else one - other for one, other in zip(losses, clean, strict=True)
    ]
    starts = [step for step in outliers if step - 1 not in outliers]
    rises, lost = [], 0.0
    for start in starts:
        level = statistics.fmean(value for value in excess[start - BEFORE : start] if not math.isnan(value))
        after = [step for step in range(start, min(start + AFTER, len(excess))) if step not in outliers]
        own = [math.inf if math.isnan(excess[step]) else excess[step] - level for step in after]
        rises.append(max(own))
        lost += sum(max(0.0, rise) for rise in own)
    return {
        "spikes": sum(rise >= SPIKE_NATS for rise in rises),
        "highest": finite(max(rises, default=0.0)),
        "lost": finite(lost),
    }


def _batches(run: Run, bad: set[int], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Text and the byte after each of its bytes."""
    text = byte_model.plays()
    text = text[: round(len(text) * (1 - HELD_OUT))]
    for step in range(run.steps):
        pieces = byte_model.cut(text, run.batch_size, generator)
        inputs, targets = pieces[:, :-1], pieces[:, 1:]
        yield inputs, targets ^ FLIPPED if step in bad else targets


@torch.no_grad()
def _held_out_loss(model: torch.nn.Module) -> float:
    text = byte_model.plays()
    text = text[round(len(text) * (1 - HELD_OUT)) :]
    return float(byte_model.loss(model, byte_model.cut(text, TEST_PIECES, torch.Generator().manual_seed(TEST_SEED))))


def _rounded(value: float) -> float | None:
    return finite(float(f"{value:.4g}"))
