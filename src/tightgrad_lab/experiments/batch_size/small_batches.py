"""Small batches at equal text: Adam's beta2 fixed, or its half-life held in items.

    Marek et al. 2025, Small Batch Size Training for Language Models, arXiv:2507.07101.

Every training sees the same pieces of text in the same order; a batch k times smaller takes k times more steps. Each
batch and choice of beta2 gets the best of the same learning rates, judged at seed 0; the last choice tunes nothing and
takes rate and beta2 from `tg.scale_adam`, that is by the square-root rule.
"""

from dataclasses import dataclass
from typing import Any

import tightgrad as tg
from tightgrad_lab.experiments.batch_size.train import BETA1, Phase, Training, text_facts
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.workers import run_all

CHOICES = ("fixed", "held", "rule")
"""beta2 as at the largest batch; beta2 of the same half-life; that and the rate by the square-root rule."""
WARMUP = 1 / 16
"""Share of the text over which the rate rises."""
DECAY = 1 / 4
"""Share of the text over which it falls to nothing."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        pieces: of text, in all, of each training.
        batches: pieces of one step, from the smallest to the largest, at which beta2 is given.
        beta2: of the largest batch.
        rates: from which the best is taken for each batch and choice.
        seeds: how many trainings differ in nothing but their random numbers.
    """

    pieces: int
    batches: tuple[int, ...]
    beta2: float
    rates: tuple[float, ...]
    seeds: int


@dataclass(frozen=True)
class Run:
    """One training."""

    choice: str
    batch: int
    learning_rate: float
    beta2: float
    pieces: int
    seed: int


class SmallBatches(Experiment[Settings]):
    """Batches down to one piece of text."""

    def settings(self, *, full: bool) -> Settings:
        """Some seconds, or two minutes."""
        if full:
            return Settings(1024, (1, 4, 16), 0.95, (2e-3, 4e-3, 8e-3), seeds=3)
        return Settings(128, (1, 16), 0.95, (4e-3,), seeds=1)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Tune at seed 0, then train the other seeds."""
        tuning = [
            _run(settings, choice, batch, rate, 0)
            for batch in settings.batches
            for choice in CHOICES[:2]
            if batch < settings.batches[-1] or choice == "fixed"
            for rate in settings.rates
        ]
        tried = dict(zip(tuning, run_all(train, tuning, report, share=(0.0, 0.6)), strict=True))
        best = best_rates(tried)
        rest = make_runs(settings, best)
        found = tried | dict(zip(rest, run_all(train, rest, report, share=(0.6, 1.0)), strict=True))
        return measured(settings, found, best)


def train(run: Run) -> float | None:
    """Train; return the held-out loss at the end in nats, None if it is not finite."""
    training = Training(run.seed)
    warmup, decay = round(run.pieces * WARMUP), round(run.pieces * DECAY)
    rate = run.learning_rate
    loss = None
    for pieces, begin, end in ((warmup, 0.0, rate), (run.pieces - warmup - decay, rate, rate), (decay, rate, 0.0)):
        loss = training.run(Phase(run.batch, pieces, begin, run.beta2, end))
    return loss


def _run(settings: Settings, choice: str, batch: int, rate: float, seed: int) -> Run:
    largest = settings.batches[-1]
    scaled = tg.scale_adam(rate, (BETA1, settings.beta2), largest, batch)
    beta2 = settings.beta2 if choice == "fixed" else scaled["betas"][1]
    return Run(choice, batch, scaled["lr"] if choice == "rule" else rate, beta2, settings.pieces, seed)


def best_rates(tried: dict[Run, float | None]) -> dict[tuple[str, int], float]:
    """Return the rate of the lowest loss for each choice and batch; of several, the lowest."""
    best: dict[tuple[str, int], tuple[float, float]] = {}
    for run, loss in tried.items():
        key = (run.choice, run.batch)
        own = (float("inf") if loss is None else loss, run.learning_rate)
        best[key] = min(best.get(key, own), own)
    return {key: rate for key, (_, rate) in best.items()}


def make_runs(settings: Settings, best: dict[tuple[str, int], float]) -> list[Run]:
    """Return the other seeds at the best rates, and all seeds of the rule, which starts from the largest batch."""
    largest = settings.batches[-1]
    again = [
        _run(settings, choice, batch, rate, seed)
        for (choice, batch), rate in best.items()
        for seed in range(1, settings.seeds)
    ]
    rule = [
        _run(settings, "rule", batch, best["fixed", largest], seed)
        for batch in settings.batches[:-1]
        for seed in range(settings.seeds)
    ]
    return [*again, *rule]


def measured(settings: Settings, found: dict[Run, float | None], best: dict[tuple[str, int], float]) -> Measured:
    """A row for each batch and choice; all losses that chose the rates."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    tuning = []
    for run, loss in found.items():
        if run.seed == 0 and run.choice != "rule":
            tuning.append({"choice": run.choice, "batch": run.batch, "learning_rate": run.learning_rate, "loss": loss})
        if run.choice != "rule" and run.learning_rate != best[run.choice, run.batch]:
            continue
        row = rows.setdefault(
            (run.batch, run.choice),
            {
                "batch": run.batch,
                "choice": run.choice,
                "beta2": run.beta2,
                "learning_rate": run.learning_rate,
                "steps": run.pieces // run.batch,
                "loss": [],
            },
        )
        row["loss"].append(loss)
    order = sorted(rows, key=lambda key: (key[0], CHOICES.index(key[1])))
    return Measured({**text_facts(), "tuning": tuning}, [rows[key] for key in order])


EXPERIMENT = SmallBatches()
