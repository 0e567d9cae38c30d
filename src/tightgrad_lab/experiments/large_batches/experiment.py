"""What happens to the loss when the batch grows, and what the learning rate has to do about it.

    Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677 (no, constant and gradual warm-up);
    You et al. 2017, arXiv:1708.03888 (LARS); You et al. 2019, arXiv:1904.00962 (LAMB).

All runs see the same samples in the same order, so a batch k times as large takes k times fewer steps. Each optimizer's
base rate is the best of a few at the smallest batch, on training samples held out for that; at a larger batch nothing
is tuned: that is what the rules promise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tightgrad_lab.cases.image import ImageCase
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.large_batches.equal import equal
from tightgrad_lab.experiments.large_batches.train import RULES, Run, train
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.schema.accumulation import LargeBatchesFigure, LargeBatchesRow

OPTIMIZERS = {"sgd": "none", "lars": "lars", "lamb": "lamb"}
"""Each optimizer, and a rule that uses it."""
TUNED = {"sgd": 0.01, "lars": 3.0, "lamb": 0.01}
"""The base rates that the full settings found; the short ones take them as they are."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        epochs: passes over the training samples.
        warmup_epochs: of the rules that warm up.
        seeds: how many runs differ in nothing but their random numbers.
        base_batch: samples of a step at which rates are tuned.
        batches: samples of a step to which they are scaled.
        rates: base rates of each optimizer from which the best is taken; one needs no tuning.
        held_out: training samples on which it is judged.
    """

    epochs: int
    warmup_epochs: int
    seeds: int
    base_batch: int
    batches: tuple[int, ...]
    rates: dict[str, tuple[float, ...]]
    held_out: int = 1000


class LargeBatches(Experiment[Settings]):
    """Growing batches under seven rules."""

    def settings(self, *, full: bool) -> Settings:
        """One large batch and one seed, or four and three."""
        if not full:
            one: dict[str, tuple[float, ...]] = {name: (rate,) for name, rate in TUNED.items()}
            return Settings(3, 1, 1, base_batch=32, batches=(512,), rates=one)
        rates = {"sgd": (0.005, 0.01, 0.02, 0.05), "lars": (1.0, 3.0, 8.0), "lamb": (0.001, 0.003, 0.01)}
        return Settings(12, 2, 3, base_batch=32, batches=(128, 256, 512, 1024), rates=rates)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Tune at the smallest batch, then train everything."""
        tuning = make_tuning(settings)
        share = len(tuning) / (len(tuning) + len(make_runs(settings, TUNED)))
        tried = run_all(train, tuning, report, share=(0.0, share)) if tuning else []
        rates = best_rates(settings, tuning, tried)
        runs = make_runs(settings, rates)
        return measured(settings, tuning, tried, rates, runs, run_all(train, runs, report, share=(share, 1.0)))


def make_tuning(settings: Settings) -> list[Run]:
    """The runs that choose the base rates: none of an optimizer that has but one."""
    return [
        Run(
            rule,
            settings.base_batch,
            seed=0,
            epochs=settings.epochs,
            warmup_epochs=settings.warmup_epochs,
            base_batch=settings.base_batch,
            rates={"sgd": TUNED["sgd"], optimizer: rate},
            held_out=settings.held_out,
        )
        for optimizer, rule in OPTIMIZERS.items()
        if len(settings.rates[optimizer]) > 1
        for rate in settings.rates[optimizer]
    ]


def best_rates(settings: Settings, tuning: list[Run], tried: list[dict[str, Any]]) -> dict[str, float]:
    """Each optimizer's rate of the highest accuracy on held-out samples; of several, the lowest."""
    best = {}
    for optimizer, rates in settings.rates.items():
        accuracy = {
            run.rates[optimizer]: found["accuracy"]
            for run, found in zip(tuning, tried, strict=True)
            if RULES[run.rule].optimizer == optimizer
        }
        best[optimizer] = max(rates, key=lambda rate: (accuracy.get(rate, 0.0), -rate))
    return best


def make_runs(settings: Settings, rates: dict[str, float]) -> list[Run]:
    """Each optimizer at the smallest batch, every rule at the others."""
    places = [(settings.base_batch, rule) for rule in OPTIMIZERS.values()]
    places += [(batch, rule) for batch in settings.batches for rule in RULES]
    return [
        Run(rule, batch, seed, settings.epochs, settings.warmup_epochs, settings.base_batch, rates)
        for seed in range(settings.seeds)
        for batch, rule in places
    ]


def measured(
    settings: Settings,
    tuning: list[Run],
    tried: list[dict[str, Any]],
    rates: Mapping[str, float],
    runs: list[Run],
    found: list[dict[str, Any]],
) -> Measured:
    """Put together: a curve for each run, a row for each batch and rule."""
    rows: dict[tuple[int, str], LargeBatchesRow] = {}
    for run, one in zip(runs, found, strict=True):
        row = rows.setdefault(
            (run.batch, run.rule),
            {
                "batch": run.batch,
                "rule": run.rule,
                "learning_rate": one["learning_rate"],
                "steps": one["steps"],
                "accuracy": [],
                "loss": [],
                "diverged": 0,
            },
        )
        row["accuracy"].append(one["accuracy"])
        row["loss"].append(one["losses"][-1])
        row["diverged"] += one["diverged"]
    train_samples, test_samples = ImageCase().load()
    figure: LargeBatchesFigure = {
        "base_batch": settings.base_batch,
        "train_samples": len(train_samples),
        "test_samples": len(test_samples),
        "warmup_epochs": settings.warmup_epochs,
        "rates": dict(rates),
        "tuning": [
            {"optimizer": RULES[run.rule].optimizer, "rate": run.rates[RULES[run.rule].optimizer], **_brief(one)}
            for run, one in zip(tuning, tried, strict=True)
        ],
        "equal": equal(settings.base_batch, rates["sgd"]),
        "curves": [
            {"batch": run.batch, "rule": run.rule, "seed": run.seed, "losses": one["losses"]}
            for run, one in zip(runs, found, strict=True)
        ],
    }
    return Measured(figure, list(rows.values()))


def _brief(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"accuracy": one["accuracy"], "loss": one["losses"][-1]}


EXPERIMENT = LargeBatches()
