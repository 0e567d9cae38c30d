"""Loss spikes of a small GPT with injected outliers, without clipping and under five methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tightgrad_lab.common.labels import label
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.loss_spikes.train import (
    AFTER,
    BEFORE,
    BETAS,
    BURST,
    HELD_OUT,
    METHODS,
    SPIKE_NATS,
    Run,
    spikes,
    train,
)
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.schema.clipping import LossSpikesFigure, LossSpikesRow, SpikeCurve

CLEAN = "clean"
"""The row without clipping and without outliers: what there is to be lost."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        seeds: how many runs differ in nothing but their random numbers.
        outliers: how often some steps in a row of each run are spoilt.
        steps: of each run.
        batch_size: pieces of text of one step.
        width: of the model.
        layers: of the model.
        learning_rate: of AdamW.
    """

    seeds: int
    outliers: int
    steps: int
    batch_size: int
    width: int
    layers: int
    learning_rate: float


class LossSpikes(Experiment[Settings]):
    """Outliers under every method."""

    def settings(self, *, full: bool) -> Settings:
        """A small model and two seeds, or a larger one and five."""
        if full:
            return Settings(5, 8, steps=500, batch_size=16, width=128, layers=2, learning_rate=3e-3)
        return Settings(2, 4, steps=220, batch_size=8, width=64, layers=2, learning_rate=3e-3)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Train all."""
        runs = make_runs(settings)
        return measured(settings, runs, run_all(train, runs, report))


def make_runs(settings: Settings) -> list[Run]:
    """Every method and seed with outliers, and no method without them."""
    return [
        Run(
            method,
            seed,
            outliers,
            settings.steps,
            settings.batch_size,
            settings.width,
            settings.layers,
            settings.learning_rate,
        )
        for seed in range(settings.seeds)
        for method, outliers in ((*((name, settings.outliers) for name in METHODS), ("none", 0)))
    ]


def measured(settings: Settings, runs: Sequence[Run], found: Sequence[dict[str, Any]]) -> Measured:
    """A row for each method, with a value for each seed; the curves of all runs."""
    clean = {run.seed: one["losses"] for run, one in zip(runs, found, strict=True) if not run.outliers}
    rows: dict[str, LossSpikesRow] = {}
    curves: list[SpikeCurve] = []
    for run, one in zip(runs, found, strict=True):
        name = run.method if run.outliers else CLEAN
        clip = METHODS[run.method]
        row = rows.setdefault(name, {"method": name, "settings": label(clip) if clip else None, "runs": []})
        row["runs"].append(
            {
                **spikes(one["losses"], clean[run.seed], one["outliers"]),
                "final_loss": one["final_loss"],
                "clip_rate": one["clip_rate"],
                "usual_norm": one["usual_norm"],
                "outlier_norm": one["outlier_norm"],
            }
        )
        curves.append(
            {
                "method": name,
                "seed": run.seed,
                "losses": one["losses"],
                "norms": one["norms"],
                "outliers": one["outliers"],
            }
        )
    figure: LossSpikesFigure = {
        "held_out": HELD_OUT,
        "burst": BURST,
        "before": BEFORE,
        "after": AFTER,
        "spike_nats": SPIKE_NATS,
        "betas": list(BETAS),
        "curves": curves,
    }
    return Measured(figure, list(rows.values()))


EXPERIMENT = LossSpikes()
