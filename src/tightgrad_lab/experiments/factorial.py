"""Pairs 13 and 15 to 17: one case in all eight combinations of clip x accumulate x compress.

Fair by construction: all combinations see the same samples in the same steps, from the same initial weights, at the
same learning rate. The compression factor of a run is the bytes counted in the run that leaves only compression out,
over its own.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tightgrad as tg
from tightgrad.core.config import to_config
from tightgrad_lab.cases import load_case
from tightgrad_lab.environment import environment
from tightgrad_lab.errors import RunError
from tightgrad_lab.experiments.flow import flow
from tightgrad_lab.training.case import Settings
from tightgrad_lab.training.files import write_json, write_jsonl
from tightgrad_lab.training.loop import Progress, Result, Trainer
from tightgrad_lab.training.ranks import Rank, Send, run_ranks

SCHEMA = 1
PROGRESS_SECONDS = 0.1
TECHNIQUES = ("clip", "accumulate", "compress")
COMBINATIONS = (
    "none",
    "clip",
    "accumulate",
    "compress",
    "clip+accumulate",
    "clip+compress",
    "accumulate+compress",
    "clip+accumulate+compress",
)
ROW_KEYS = (
    "case",
    "combination",
    "seed",
    "metric",
    "value",
    "wire_bytes",
    "compression_factor",
    "peak_memory_bytes",
    "step_seconds",
    "skipped_steps",
)


@dataclass(frozen=True)
class Job:
    """One run to do."""

    case: str
    combination: str
    seed: int
    ranks: int
    settings: Settings
    folder: Path
    command: str


@dataclass(frozen=True)
class Message:
    """From rank 0: how far job number `job` is; `row` once it is finished."""

    job: int
    progress: Progress | None
    row: dict[str, Any] | None = None


def make_plan(combination: str, settings: Settings) -> tg.Plan:
    """The plan of a combination. Without compression an explicit dense all-reduce, so that its bytes are counted."""
    chosen = () if combination == "none" else combination.split("+")
    return tg.Plan(
        accumulate=tg.Accumulate(settings.micro_batches) if "accumulate" in chosen else None,
        compress=settings.compress if "compress" in chosen else tg.Compress(),
        clip=settings.clip if "clip" in chosen else None,
        guard=tg.Guard("skip"),
    )


def without_compression(combination: str) -> str:
    """The combination that a compressed one is measured against."""
    return "+".join(part for part in combination.split("+") if part != "compress") or "none"


def make_jobs(case: str, settings: Settings, ranks: int, runs: Path, command: str) -> list[Job]:
    """All combinations of every seed, each after the one it is measured against."""
    settings.rank_batch_size(ranks)
    return [
        Job(case, combination, seed, ranks, settings, runs / case / combination / f"seed{seed}", command)
        for seed in range(settings.seeds)
        for combination in COMBINATIONS
    ]


def case_settings(case: str, *, full: bool, seeds: int | None, epochs: int | None) -> Settings:
    """The case's own settings, with what was asked for otherwise."""
    settings = load_case(case).settings(full=full)
    return replace(settings, seeds=seeds or settings.seeds, epochs=epochs or settings.epochs)


def run_jobs(jobs: list[Job], ranks: int, receive: Callable[[Message], None]) -> list[dict[str, Any]]:
    """Train all jobs; return rows of `ROW_KEYS` (on rank 0, under torchrun).

    Raises:
        RunError: a rank failed; error.txt in the job's folder has the traceback.
    """
    rows: list[dict[str, Any]] = []
    current = 0

    def keep(message: Message) -> None:
        nonlocal current
        current = message.job
        if message.row is not None:
            rows.append(message.row)
        receive(message)

    for job in jobs:
        (job.folder / "error.txt").unlink(missing_ok=True)
    try:
        run_ranks(ranks, train_jobs, (jobs,), keep)
    except RunError as error:
        failed = next((job for job in jobs if (job.folder / "error.txt").exists()), jobs[current])
        _write_error(failed, str(error.__cause__))
        reason = (failed.folder / "error.txt").read_text(encoding="utf-8").strip().splitlines()[-1]
        title = f"{failed.case} {failed.combination} seed {failed.seed}"
        raise RunError(f"{title} failed: {reason} (traceback: {failed.folder / 'error.txt'})") from error
    return rows


def train_jobs(rank: Rank, send: Send, jobs: list[Job]) -> None:
    """Train all jobs, one after the other; rank 0 writes their files. Collective: runs on every rank."""
    wire_bytes: dict[tuple[str, str, int], int] = {}
    for index, job in enumerate(jobs):
        try:
            row = _train_job(rank, job, _throttled(index, send) if rank.rank == 0 else _ignore, wire_bytes)
        except Exception:
            _write_error(job, traceback.format_exc())
            raise
        if rank.rank == 0:
            send(Message(index, None, row))


def _train_job(
    rank: Rank, job: Job, report: Callable[[Progress], None], wire_bytes: dict[tuple[str, str, int], int]
) -> dict[str, Any]:
    case, plan = load_case(job.case), make_plan(job.combination, job.settings)
    trainer = Trainer(case, job.settings, plan, job.seed, rank)
    config = _identity(job) | {
        "ranks": job.ranks,
        "plan": plan.to_config(),
        "settings": to_config(job.settings),
        "command": job.command,
    }
    if rank.rank == 0:
        (job.folder / "summary.json").unlink(missing_ok=True)
        write_json(job.folder / "config.json", config)
        write_json(job.folder / "environment.json", environment(str(rank.device), rank.backend))
    result = trainer.run(report)
    sent = wire_bytes[job.case, job.combination, job.seed] = sum(step["wire_bytes"] for step in result.steps)
    dense = wire_bytes[job.case, without_compression(job.combination), job.seed]
    summary = _identity(job) | {
        "metric": case.metric,
        "value": result.value,
        "wire_bytes": sent,
        "compression_factor": dense / sent if sent else None,
        "peak_memory_bytes": result.peak_memory_bytes,
        "step_seconds": result.median_seconds(),
        "skipped_steps": sum(step["skipped"] for step in result.steps),
        "num_parameters": result.num_parameters,
        "train_samples": len(trainer.train),
        "test_samples": len(trainer.test),
        "epochs": result.epochs,
        "seconds": result.seconds,
    }
    if rank.rank == 0:
        _write_result(job, result, summary)
    return {key: summary[key] for key in ROW_KEYS}


def _write_result(job: Job, result: Result, summary: dict[str, Any]) -> None:
    write_jsonl(job.folder / "steps.jsonl", result.steps)
    if job.combination == COMBINATIONS[-1] and job.seed == 0:
        header = {"schema": SCHEMA, "case": job.case, "combination": job.combination, "ranks": job.ranks}
        write_json(job.folder.parents[1] / "flow.json", header | flow(result))
    write_json(job.folder / "summary.json", summary)  # last: a run with a summary is whole


def _identity(job: Job) -> dict[str, Any]:
    return {"schema": SCHEMA, "case": job.case, "combination": job.combination, "seed": job.seed}


def _write_error(job: Job, text: str) -> None:
    """The first to write is the cause; what other ranks say is its echo."""
    job.folder.mkdir(parents=True, exist_ok=True)
    try:
        with (job.folder / "error.txt").open("x", encoding="utf-8") as file:
            file.write(text.rstrip() + "\n")
    except FileExistsError:
        pass


def _throttled(job: int, send: Send) -> Callable[[Progress], None]:
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            send(Message(job, progress))

    return report


def _ignore(progress: Progress) -> None:
    return None
