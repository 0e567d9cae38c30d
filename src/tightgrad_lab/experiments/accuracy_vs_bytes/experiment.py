"""Accuracy against compression, with and without what compression leaves behind being sent later.

    Lin et al. 2017, Deep Gradient Compression, arXiv:1712.01887; Alistarh et al. 2017, QSGD, arXiv:1610.02132;
    Karimireddy et al. 2019, arXiv:1901.09847 (error feedback); Vogels et al. 2019, PowerSGD, arXiv:1905.13727.

The image case on two ranks: the same samples, steps, first weights and learning rate for all. A compression factor
is the bytes that the dense run sent over those that the run sent, from its first step to its last.
"""

from dataclasses import dataclass, replace
from typing import Any

from tightgrad_lab.cases.image import ImageCase
from tightgrad_lab.errors import RunError
from tightgrad_lab.experiments.accuracy_vs_bytes import feedback
from tightgrad_lab.experiments.accuracy_vs_bytes.methods import DGC_CLIP, DGC_START, METHODS, SMALL
from tightgrad_lab.experiments.accuracy_vs_bytes.train import Done, Job, train_all
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.schema.compression import AccuracyVsBytesRow
from tightgrad_lab.training import case
from tightgrad_lab.training.ranks import run_ranks

SHORT = (
    ("dense", "none"),
    ("float16", "none"),
    ("int8", "error_feedback"),
    ("int4", "error_feedback"),
    ("prune_10", "error_feedback"),
    ("topk_1", "none"),
    ("topk_1", "error_feedback"),
    ("dgc_01", "momentum_correction"),
)
"""What the short settings run: a method and its feedback."""
LONG = (("dense", "none"), ("int4", "error_feedback"), ("topk_01", "none"), ("dgc_01", "momentum_correction"))
"""What the full settings run; many methods are compared on the small network, see `feedback`."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        epochs: passes over the training samples.
        batch_size: samples of one step, over all ranks.
        learning_rate: the highest.
        density_warmup_epochs: in which the density of DGC falls.
        seeds: how many runs differ in nothing but their random numbers.
        ranks: processes.
        runs: method and feedback, the dense one first.
        compared: methods that the small network sends with, without feedback and with it.
        compared_rates: of it, over (1 - momentum).
        compared_seeds: of it.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    density_warmup_epochs: int
    seeds: int
    ranks: int
    runs: tuple[tuple[str, str], ...]
    compared: tuple[str, ...] = feedback.SENT
    compared_rates: tuple[float, ...] = (0.1, feedback.EQUAL_RATE)
    compared_seeds: int = 3


class AccuracyVsBytes(Experiment[Settings]):
    """Families of compression on the image case."""

    def settings(self, *, full: bool) -> Settings:
        """Several methods for two epochs, or those that decide for six, over three seeds."""
        if not full:
            return Settings(
                epochs=2,
                batch_size=64,
                learning_rate=0.05,
                density_warmup_epochs=1,
                seeds=1,
                ranks=2,
                runs=SHORT,
                compared=("int2", "topk_1", "topk_01"),
                compared_rates=(feedback.EQUAL_RATE,),
                compared_seeds=1,
            )
        return Settings(6, 64, 0.05, 2, seeds=3, ranks=2, runs=LONG)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Train all on the same ranks."""
        jobs = make_jobs(settings)
        found = measured(settings, jobs, train_jobs(settings, jobs, report))
        arms = feedback.make_arms(settings.compared, settings.compared_rates, settings.compared_seeds)
        sent = [feedback.train(arm) for arm in arms]
        return replace(found, figure={**found.figure, "feedback": feedback.rows(arms, sent)})


def make_jobs(settings: Settings) -> list[Job]:
    """Every method and feedback of every seed."""
    return [Job(method, kind, seed) for seed in range(settings.seeds) for method, kind in settings.runs]


def train_jobs(settings: Settings, jobs: list[Job], report: Report) -> list[dict[str, Any]]:
    """What each job gave, in their order.

    Raises:
        RunError: a rank failed.
    """
    found: dict[int, dict[str, Any]] = {}

    def receive(message: Done) -> None:
        if message.found is not None:
            found[message.job] = message.found
        job = jobs[message.job]
        report((message.job + message.share) / len(jobs), f"{job.method}, {job.feedback}")

    run_ranks(settings.ranks, train_all, (jobs, training(settings), settings.density_warmup_epochs), receive)
    if len(found) < len(jobs):
        raise RunError(f"{len(jobs) - len(found)} of {len(jobs)} runs gave no result.")
    return [found[index] for index in range(len(jobs))]


def training(settings: Settings) -> case.Settings:
    """The image case's settings, as far as these do not say otherwise."""
    return replace(
        ImageCase().settings(full=False),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        micro_batches=1,
    )


def measured(settings: Settings, jobs: list[Job], found: list[dict[str, Any]]) -> Measured:
    """Put together: a row for each method and feedback, lists by seed."""
    dense = {job.seed: one for job, one in zip(jobs, found, strict=True) if job.method == "dense"}
    rows: dict[tuple[str, str], AccuracyVsBytesRow] = {}
    for job, one in zip(jobs, found, strict=True):
        row = rows.setdefault(
            (job.method, job.feedback),
            {
                "method": job.method,
                "family": METHODS[job.method].family,
                "feedback": job.feedback,
                "accuracy": [],
                "loss": [],
                "wire_bytes": [],
                "compression_factor": [],
                "last_step_factor": [],
                "step_seconds": [],
                "residual_norm": [],
                "diverged": 0,
            },
        )
        row["diverged"] += one["diverged"]
        if one["diverged"]:
            continue
        row["accuracy"].append(one["accuracy"])
        row["loss"].append(one["losses"][-1])
        row["wire_bytes"].append(one["wire_bytes"])
        row["compression_factor"].append(dense[job.seed]["wire_bytes"] / one["wire_bytes"])
        row["last_step_factor"].append(dense[job.seed]["last_step"] / one["last_step"])
        row["step_seconds"].append(one["step_seconds"])
        row["residual_norm"].append(one["residual_norm"])
    train_samples, test_samples = ImageCase().load()
    figure = {
        "test_samples": len(test_samples),
        "train_samples": len(train_samples),
        "num_parameters": sum(parameter.numel() for parameter in ImageCase().model().parameters()),
        "steps": settings.epochs * -(-len(train_samples) // settings.batch_size),
        "dense_below": SMALL,
        "dgc_local_clip": DGC_CLIP,
        "dgc_start_density": DGC_START,
        "losses": [
            {"method": job.method, "feedback": job.feedback, "seed": job.seed, "losses": one["losses"]}
            for job, one in zip(jobs, found, strict=True)
        ],
    }
    return Measured(figure, list(rows.values()), backend="gloo")


EXPERIMENT = AccuracyVsBytes()
