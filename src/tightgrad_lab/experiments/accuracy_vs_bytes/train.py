"""Trains with every method, one after the other on the same ranks: same samples, same steps, same first weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tightgrad.core.errors import NonFiniteGradientError
from tightgrad_lab.cases.image import ImageCase
from tightgrad_lab.experiments.accuracy_vs_bytes.methods import METHODS, make_plan, training_settings
from tightgrad_lab.training.case import Settings
from tightgrad_lab.training.loop import Progress, Trainer
from tightgrad_lab.training.ranks import Rank, Send


@dataclass(frozen=True)
class Job:
    """One training: a method, its feedback, a seed."""

    method: str
    feedback: str
    seed: int


@dataclass(frozen=True)
class Done:
    """From rank 0: job number `job` is at `share`; `found` once it has ended."""

    job: int
    share: float
    found: dict[str, Any] | None = None


def train_all(rank: Rank, send: Send, jobs: list[Job], settings: Settings, warmup_epochs: int) -> None:
    """Train all jobs; rank 0 sends what they gave. Collective: runs on every rank."""
    for index, job in enumerate(jobs):
        found = train(rank, job, settings, warmup_epochs, _told(index, send) if rank.rank == 0 else _silent)
        if rank.rank == 0:
            send(Done(index, 1.0, found))


def train(
    rank: Rank, job: Job, settings: Settings, warmup_epochs: int, report: Callable[[Progress], None]
) -> dict[str, Any]:
    """Train one.

    Returns:
        "accuracy"; "losses" over each epoch; "wire_bytes" of one rank over the run, and of its "last_step";
        "step_seconds"; "residual_norm" at the end; "diverged": gradients were not finite for good, accuracy is None.
    """
    own = training_settings(settings, job.feedback)
    case = ImageCase()
    steps_per_epoch = -(-len(case.load()[0]) // settings.batch_size)
    plan = make_plan(METHODS[job.method], job.feedback, settings.momentum, warmup_epochs * steps_per_epoch)
    trainer = Trainer(case, own, plan, job.seed, rank)
    try:
        result, _ = trainer.run(report)
    except NonFiniteGradientError:
        return {"accuracy": None, "losses": [], "diverged": True}
    return {
        "accuracy": result.value,
        "losses": [epoch["train_loss"] for epoch in result.epochs],
        "wire_bytes": sum(step["wire_bytes"] for step in result.steps),
        "last_step": result.steps[-1]["wire_bytes"],
        "step_seconds": result.median_seconds(),
        "residual_norm": result.steps[-1]["residual_norm"],
        "seconds": result.seconds,
        "diverged": False,
    }


def _told(index: int, send: Send) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step % 10 == 0:
            send(Done(index, progress.step / progress.steps))

    return report


def _silent(progress: Progress) -> None:
    return None
