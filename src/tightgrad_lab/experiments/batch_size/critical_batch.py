"""The critical batch size by branching, and a batch that grows along with it.

    Merrill et al. 2025, Critical Batch Size Revisited, arXiv:2505.23971.

At several places of one training with a small batch, copies of it go on over the same text with larger batches, each
with the rate of the square-root rule. The critical batch size of a place is the largest batch whose held-out loss is
then not higher than that of the small one by more than a tolerance. Afterwards whole trainings at equal text are
compared: the small batch, the largest one, and a batch that is set to the critical size of each place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import tightgrad as tg
from tightgrad_lab.experiments.batch_size.train import Phase, Training, text_facts
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.workers import run_all

MARKS = (0.9, 1.0)
"""Shares of a branch after which the loss is measured; the mean is taken."""
DECAY = 0.25
"""Share of the whole trainings over which the rate falls to nothing."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        rates: of AdamW at the smallest batch, from which the best is taken at seed 0.
        beta2: of AdamW, for all batches.
        warmup: pieces of text over which the rate rises at first.
        places: pieces of text after which branches begin.
        window: pieces of text of a branch.
        batches: pieces of text of a step, the smallest first.
        tolerance: by which a loss may be higher, in nats.
        pieces: of text of each whole training.
        seeds: how many trainings differ in nothing but their random numbers.
    """

    rates: tuple[float, ...]
    beta2: float
    warmup: int
    places: tuple[int, ...]
    window: int
    batches: tuple[int, ...]
    tolerance: float
    pieces: int
    seeds: int


@dataclass(frozen=True)
class Branching:
    """One training with its branches."""

    settings: Settings
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Whole:
    """One training from beginning to end, with a batch for each place."""

    settings: Settings
    learning_rate: float
    seed: int
    plan: str
    batches: tuple[int, ...]


class CriticalBatch(Experiment[Settings]):
    """Branches at several places, then whole trainings."""

    def settings(self, *, full: bool) -> Settings:
        """Some seconds, or a minute."""
        if full:
            return Settings((4e-3,), 0.99, 128, (128, 512, 1024), 256, (4, 8, 16, 32), 0.02, 2048, seeds=3)
        return Settings((2e-3,), 0.99, 64, (64, 128), 64, (4, 16, 64), 0.02, 256, seeds=1)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Choose the rate, branch, then train with the batches that the branches allow."""
        tuning = [Whole(settings, rate, 0, "small", (settings.batches[0],)) for rate in settings.rates]
        tried = run_all(train, tuning, report, share=(0.0, 0.2)) if len(tuning) > 1 else [{"loss": None}]
        losses = [math.inf if one["loss"] is None else float(one["loss"]) for one in tried]
        rate = settings.rates[losses.index(min(losses))]
        jobs = [Branching(settings, rate, seed) for seed in range(settings.seeds)]
        found = run_all(branch, jobs, report, share=(0.2, 0.6))
        rows = [_place_row(settings, place, [one[place] for one in found]) for place in settings.places]
        sizes = growing([row["critical_batch"] for row in rows])
        plans = {
            "small": settings.batches[:1],
            "large": settings.batches[-1:],
            "growing": (settings.batches[0], *sizes),
        }
        wholes = [
            Whole(settings, rate, seed, name, sizes) for name, sizes in plans.items() for seed in range(len(jobs))
        ]
        ended = run_all(train, wholes, report, share=(0.6, 1.0))
        figure = {
            **text_facts(),
            "learning_rate": rate,
            "tuning": [
                {"learning_rate": one, "loss": loss["loss"]} for one, loss in zip(settings.rates, tried, strict=True)
            ],
            "places": rows,
        }
        return Measured(figure, [_plan_row(name, sizes, wholes, ended) for name, sizes in plans.items()])


def branch(job: Branching) -> dict[int, dict[int, float | None]]:
    """Return the held-out loss after the branch, for each place and batch."""
    settings = job.settings
    training = Training(job.seed)
    training.run(Phase(settings.batches[0], settings.warmup, 0.0, settings.beta2, job.learning_rate))
    done, found = settings.warmup, {}
    for place in settings.places:
        if place > done:
            training.run(Phase(settings.batches[0], place - done, job.learning_rate, settings.beta2))
        done = place
        found[place] = {
            batch: training.branch().run(
                Phase(batch, settings.window, _scaled(job.learning_rate, settings, batch), settings.beta2), MARKS
            )
            for batch in settings.batches
        }
    return found


def train(whole: Whole) -> dict[str, Any]:
    """Train with one batch after the other.

    Returns:
        "loss" held out at the end in nats, "steps".
    """
    settings = whole.settings
    decay = round(settings.pieces * DECAY)
    begins = [0, *settings.places][: len(whole.batches)]
    ends = [*begins[1:], settings.pieces - decay]
    training = Training(whole.seed)
    first = _scaled(whole.learning_rate, settings, whole.batches[0])
    phases = [Phase(whole.batches[0], settings.warmup, 0.0, settings.beta2, first)]
    for batch, begin, end in zip(whole.batches, begins, ends, strict=True):
        pieces = end - max(begin, settings.warmup)
        phases.append(Phase(batch, pieces, _scaled(whole.learning_rate, settings, batch), settings.beta2))
    last = phases[-1]
    phases.append(Phase(last.batch, decay, last.learning_rate, settings.beta2, 0.0))
    phases = [phase for phase in phases if phase.steps > 0]
    loss = [training.run(phase) for phase in phases][-1]
    return {"loss": loss, "steps": sum(phase.steps for phase in phases)}


def _scaled(rate: float, settings: Settings, batch: int) -> float:
    return tg.scale_lr(rate, settings.batches[0], batch, "sqrt")


def critical(losses: Sequence[tuple[int, float]], tolerance: float) -> int:
    """Return the largest batch up to which no loss is above that of the first by more than the tolerance.

    Examples:
        >>> critical([(4, 2.0), (8, 2.01), (16, 2.3), (32, 2.0)], 0.02)
        8
    """
    best = losses[0][0]
    for batch, loss in losses:
        if loss > losses[0][1] + tolerance:
            return best
        best = batch
    return best


def growing(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return sizes that never fall.

    Examples:
        >>> growing([4, 16, 8, 32])
        (4, 16, 16, 32)
    """
    return tuple(max(sizes[: place + 1]) for place in range(len(sizes)))


def _place_row(settings: Settings, place: int, seeds: list[dict[int, float | None]]) -> dict[str, Any]:
    """The losses of all seeds by batch, and the critical batch size of their means."""
    means = []
    for batch in settings.batches:
        own = [one[batch] for one in seeds]
        means.append((batch, math.inf if None in own else fmean(loss for loss in own if loss is not None)))
    losses = [{"batch": batch, "loss": [one[batch] for one in seeds]} for batch in settings.batches]
    return {"place": place, "losses": losses, "critical_batch": critical(means, settings.tolerance)}


def _plan_row(
    name: str, sizes: Sequence[int], wholes: Sequence[Whole], ended: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    own = [one for whole, one in zip(wholes, ended, strict=True) if whole.plan == name]
    return {"plan": name, "batches": list(sizes), "steps": own[0]["steps"], "loss": [one["loss"] for one in own]}


EXPERIMENT = CriticalBatch()
