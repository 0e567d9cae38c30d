"""Temporal order with and without clipping; and which kinds of networks need it on real data.

Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv:1211.5063.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.temporal_order import cliff, kinds
from tightgrad_lab.experiments.temporal_order.task import Task, train
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.schema.clipping import TemporalOrderFigure

KINDS = ("rnn", "lstm")
SHARE_OF_TASKS = 0.7


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        lengths: of the sequences, for each kind of recurrent network.
        seeds: how many runs of a length differ in nothing but their random numbers.
        steps: of each run at most.
        max_norm: of clipping, everywhere.
        rates: learning rates of plain SGD, for each kind, without clipping and with it.
        batch_size: sequences of a step.
        hidden: units.
        check_every: steps between tests.
        test_sequences: of a test.
        kind_rates: learning rates of the table.
        kind_seeds: runs of each.
        kind_steps: steps of each.
        kind_batch: pieces of text, or images, of a step.
    """

    lengths: dict[str, tuple[int, ...]]
    seeds: int
    steps: int
    max_norm: float
    rates: dict[str, tuple[float, ...]]
    kind_rates: tuple[float, ...]
    kind_seeds: int
    kind_steps: int
    batch_size: int = 32
    hidden: int = 50
    check_every: int = 100
    test_sequences: int = 1000
    kind_batch: int = 16


class TemporalOrder(Experiment[Settings]):
    """Recurrent networks, and others."""

    def settings(self, *, full: bool) -> Settings:
        """The RNN at two lengths and two seeds; or both kinds, five seeds, and three rates for plain SGD."""
        if not full:
            return Settings(
                lengths={"rnn": (10, 30)},
                seeds=2,
                steps=1000,
                max_norm=1.0,
                rates={"rnn": (0.1,)},
                kind_rates=(0.1, 1.0),
                kind_seeds=1,
                kind_steps=60,
            )
        return Settings(
            lengths={"rnn": (10, 20, 30, 50), "lstm": (10, 20)},
            seeds=5,
            steps=2000,
            max_norm=1.0,
            rates={"rnn": (0.1, 0.3, 0.01), "lstm": (1.0,)},
            kind_rates=(0.1, 0.3, 1.0),
            kind_seeds=5,
            kind_steps=100,
        )

    def run(self, settings: Settings, report: Report) -> Measured:
        """Train all, the longest first."""
        tasks = make_tasks(settings)
        found = run_all(train, tasks, report, share=(0.0, SHARE_OF_TASKS))
        runs = make_runs(settings)
        table = table_rows(runs, run_all(kinds.train, runs, report, share=(SHARE_OF_TASKS, 1.0)))
        return Measured(figure_data(tasks, found), table)


def make_tasks(settings: Settings) -> list[Task]:
    """Every kind, length, seed and rate, without clipping and with it."""
    tasks = [
        Task(
            kind,
            length,
            seed,
            max_norm,
            settings.steps,
            rate,
            settings.batch_size,
            settings.hidden,
            settings.check_every,
            settings.test_sequences,
        )
        for kind, lengths in settings.lengths.items()
        for length in lengths
        for seed in range(settings.seeds)
        for max_norm in (None, settings.max_norm)
        for rate in settings.rates[kind]
    ]
    return sorted(tasks, key=lambda task: -task.length)


def figure_data(tasks: list[Task], found: list[dict[str, Any]]) -> TemporalOrderFigure:
    """The runs as they are."""
    rows: list[Any] = [
        {
            "kind": task.kind,
            "length": task.length,
            "seed": task.seed,
            "clipped": task.max_norm is not None,
            "learning_rate": task.learning_rate,
            **one,
        }
        for task, one in zip(tasks, found, strict=True)
    ]
    rows.sort(key=lambda row: (row["kind"], row["length"], row["clipped"], -row["learning_rate"], row["seed"]))
    return {"runs": rows, "cliff": cliff.surface(), "backward": cliff.on_the_way_back()}


def make_runs(settings: Settings) -> list[kinds.Run]:
    """Every kind, rate and seed, without and with clipping."""
    return [
        kinds.Run(kind, rate, seed, max_norm, settings.kind_steps, settings.kind_batch)
        for kind in kinds.KINDS
        for rate in settings.kind_rates
        for seed in range(settings.kind_seeds)
        for max_norm in (None, settings.max_norm)
    ]


def table_rows(runs: list[kinds.Run], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each kind."""
    rows = []
    for kind in kinds.KINDS:
        plain = [(run, one) for run, one in zip(runs, found, strict=True) if run.kind == kind and run.max_norm is None]
        clipped = [(run, one) for run, one in zip(runs, found, strict=True) if run.kind == kind and run.max_norm]
        rows.append(
            {
                "kind": kind,
                "largest_norm": max(one["largest_norm"] for _, one in plain),
                "largest_norm_with": max(one["largest_norm"] for _, one in clipped),
                "runs": len(plain),
                "diverged": sum(one["diverged"] for _, one in plain),
                "diverged_with": sum(one["diverged"] for _, one in clipped),
                "clip_rate": fmean(one["clip_rate"] for _, one in clipped),
                **best("best", plain),
                **best("best_with", clipped),
            }
        )
    return rows


def best(key: str, members: list[tuple[kinds.Run, dict[str, Any]]]) -> dict[str, Any]:
    """The rate of the lowest mean loss among those of which no run diverged; None if there is none."""
    losses = {}
    for rate in sorted({run.learning_rate for run, _ in members}):
        own = [one for run, one in members if run.learning_rate == rate]
        if not any(one["diverged"] for one in own):
            losses[rate] = [one["loss"] for one in own]
    if not losses:
        return {f"{key}_rate": None, f"{key}_loss": None}
    rate = min(losses, key=lambda rate: fmean(losses[rate]))
    return {f"{key}_rate": rate, f"{key}_loss": losses[rate]}


EXPERIMENT = TemporalOrder()
