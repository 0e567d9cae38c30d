"""Loss spikes of the small GPT under Muon, with and without a bound on the gradient before the optimizers.

    Jordan et al. 2024 and Liu et al. 2025, arXiv:2502.16982 (Muon, here torch's).

The outliers, the model and what counts as a spike are those of `loss_spikes`. Muon steps the matrices of the layers,
AdamW the rest; one norm over all gradients bounds both.
"""

from dataclasses import dataclass, replace
from typing import Any

from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.loss_spikes.experiment import LossSpikes
from tightgrad_lab.experiments.loss_spikes.experiment import Settings as SpikeSettings
from tightgrad_lab.experiments.loss_spikes.train import SPIKE_NATS, Run, spikes, train
from tightgrad_lab.experiments.workers import run_all

METHODS = ("none", "global_norm")
ADAM = 0.0
"""Stands for Muon's rate where AdamW steps all parameters."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        spikes: the settings of `loss_spikes`.
        rates: of Muon, from which the one of the lowest loss without outliers and bound is taken, at seed 0.
    """

    spikes: SpikeSettings
    rates: tuple[float, ...]


class MuonSpikes(Experiment[Settings]):
    """Muon and AdamW beside it, and AdamW alone, without a bound and with one."""

    def settings(self, *, full: bool) -> Settings:
        """The short settings of `loss_spikes`, or these with three seeds."""
        short = LossSpikes().settings(full=False)
        if full:
            return Settings(replace(short, seeds=3), (0.01,))
        return Settings(replace(short, seeds=1, outliers=1, steps=80), (0.01,))

    def run(self, settings: Settings, report: Report) -> Measured:
        """Choose Muon's rate, then train all."""
        tuning = [_run(settings, "none", 0, 0, rate) for rate in settings.rates]
        tried = run_all(train, tuning, report, share=(0.0, 0.3)) if len(tuning) > 1 else [{"final_loss": 0.0}]
        losses = [float("inf") if one["final_loss"] is None else float(one["final_loss"]) for one in tried]
        rate = settings.rates[losses.index(min(losses))]
        jobs = [
            _run(settings, method, seed, outliers, chosen)
            for chosen in (rate, ADAM)
            for seed in range(settings.spikes.seeds)
            for method, outliers in (*((name, settings.spikes.outliers) for name in METHODS), ("none", 0))
        ]
        found = dict(zip(jobs, run_all(train, jobs, report, share=(0.3, 1.0)), strict=True))
        rows: dict[tuple[bool, str], dict[str, Any]] = {}
        for run, one in found.items():
            if not run.outliers:
                continue
            clean = found[replace(run, method="none", outliers=0)]["losses"]
            name = "adamw" if run.muon_rate is None else "muon"
            row = rows.setdefault(
                (run.muon_rate is None, run.method), {"optimizer": name, "method": run.method, "runs": []}
            )
            kept = {key: one[key] for key in ("final_loss", "clip_rate", "usual_norm", "outlier_norm")}
            row["runs"].append({**spikes(one["losses"], clean, one["outliers"]), **kept})
        tried_rates = [
            {"rate": one, "final_loss": loss["final_loss"]} for one, loss in zip(settings.rates, tried, strict=True)
        ]
        return Measured({"muon_rate": rate, "tuning": tried_rates, "spike_nats": SPIKE_NATS}, list(rows.values()))


def _run(settings: Settings, method: str, seed: int, outliers: int, rate: float) -> Run:
    own = settings.spikes
    size = (own.steps, own.batch_size, own.width, own.layers)
    return Run(method, seed, outliers, *size, own.learning_rate, None if rate == ADAM else rate)


EXPERIMENT = MuonSpikes()
