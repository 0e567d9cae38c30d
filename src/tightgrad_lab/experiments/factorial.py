"""Pairs 13 and 15 to 17: each case in all eight combinations of clip x accumulate x compress.

Other variants of a case (another model, another horizon) run in two combinations, below runs/CASE/variants/VARIANT.

Fair by construction: all combinations see the same samples in the same steps, from the same initial weights, at the
same learning rate. The compression factor of a run is the bytes counted in the run that leaves only compression out,
over its own.
"""

import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

import tightgrad as tg
from tightgrad.core.config import to_config
from tightgrad_lab.cases import default_variant, embedded_variants, full_variants, load_case
from tightgrad_lab.environment import environment
from tightgrad_lab.errors import ArgumentError, RunError
from tightgrad_lab.experiments.baselines import write_baselines
from tightgrad_lab.experiments.flow import flow
from tightgrad_lab.experiments.inputs import digest
from tightgrad_lab.experiments.resume import CHECKPOINT, finished, resumable
from tightgrad_lab.schema import COMBINATIONS, SCHEMA
from tightgrad_lab.training.case import AnyCase, Settings
from tightgrad_lab.training.files import finite, write_json, write_jsonl
from tightgrad_lab.training.loop import Keep, Progress, Result, Trainer
from tightgrad_lab.training.model_file import save_model
from tightgrad_lab.training.ranks import Rank, Send, run_ranks, under_torchrun

PROGRESS_SECONDS = 0.1
COMPARED = ("none", "clip+accumulate+compress")
"""The combinations of a case's other variants."""
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
    """One run to do.

    Args:
        resume: from its newest checkpoint, if it was begun.
        again: also if it is finished and nothing that it depends on has changed.
    """

    case: str
    combination: str
    seed: int
    ranks: int
    settings: Settings
    folder: Path
    command: str
    resume: bool = False
    again: bool = False


@dataclass(frozen=True)
class Message:
    """From rank 0: how far job number `job` is; `row` once it is finished, now or (`unchanged`) before."""

    job: int
    progress: Progress | None
    row: dict[str, Any] | None = None
    unchanged: bool = False


def make_plan(combination: str, settings: Settings) -> tg.Plan:
    """The plan of a combination. Without compression an explicit dense all-reduce, so that its bytes are counted."""
    chosen = () if combination == "none" else combination.split("+")
    return tg.Plan(
        accumulate=tg.Accumulate(settings.micro_batches) if "accumulate" in chosen else None,
        compress=settings.compress if "compress" in chosen else tg.Compress(),
        clip=settings.clip if "clip" in chosen else None,
        guard=tg.Guard("skip"),
    )


def check_combinations(asked: Sequence[str] | None) -> tuple[str, ...]:
    """The combinations that were asked for, in their own order.

    Raises:
        ArgumentError: one is unknown.
    """
    unknown = [name for name in asked or () if name not in COMBINATIONS]
    if unknown:
        raise ArgumentError(f"no combination is named {unknown[0]!r}; choose from: {', '.join(COMBINATIONS)}.")
    return tuple(name for name in COMBINATIONS if name in (asked or ()))


def without_compression(combination: str) -> str:
    """The combination that a compressed one is measured against."""
    return "+".join(part for part in combination.split("+") if part != "compress") or "none"


def make_jobs(
    case: str,
    settings: Settings,
    ranks: int,
    runs: Path,
    command: str,
    *,
    resume: bool = False,
    again: bool = False,
    combinations: Sequence[str] = COMBINATIONS,
) -> list[Job]:
    """The combinations of every seed, each after the one it is measured against."""
    settings.rank_batch_size(ranks)
    folder = case_folder(runs, case, settings.variant)
    return [
        Job(case, combination, seed, ranks, settings, folder / combination / f"seed{seed}", command, resume, again)
        for seed in range(settings.seeds)
        for combination in combinations
    ]


def case_folder(runs: Path, case: str, variant: str) -> Path:
    """Where the runs of a variant are: runs/CASE of the default, runs/CASE/variants/VARIANT of any other."""
    return runs / case if variant in ("", default_variant(case)) else runs / case / "variants" / variant


def case_settings(
    case: str, *, full: bool, seeds: int | None, epochs: int | None, variant: str | None = None
) -> Settings:
    """The case's own settings, with what was asked for otherwise; of its first full variant if `full`."""
    chosen = variant or (next(iter(full_variants(case)), "") if full else "")
    settings = load_case(case, chosen).settings(full=full)
    return replace(settings, seeds=seeds or settings.seeds, epochs=epochs or settings.epochs)


def other_variants(case: str, *, full: bool) -> tuple[str, ...]:
    """The variants that run in the combinations `COMPARED` only."""
    return (full_variants(case) if full else embedded_variants(case))[1:]


def run_jobs(jobs: list[Job], ranks: int, receive: Callable[[Message], None]) -> list[dict[str, Any]]:
    """Train all jobs that are not finished; return rows of `ROW_KEYS`, in their order (on rank 0, under torchrun).

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

    done = [_finished(job) for job in jobs]
    if all(done) and not under_torchrun():
        for index, summary in enumerate(done):
            assert summary is not None
            keep(_row(index, summary, unchanged=True))
        return rows
    for job in jobs:
        (job.folder / "error.txt").unlink(missing_ok=True)
        load_case(job.case, job.settings.variant).load()  # fetches what is not in the package, once and not per rank
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
    wire_bytes: dict[tuple[str, str, str, int], int] = {}
    done = _of_rank_0([_finished(job) for job in jobs])
    for index, job in enumerate(jobs):
        case = load_case(job.case, job.settings.variant)
        key = (job.case, job.settings.variant)
        summary = done[index]
        try:
            if summary is None:
                dense = wire_bytes.get((*key, without_compression(job.combination), job.seed))
                report = _throttled(index, send) if rank.rank == 0 else _ignore
                summary = _train_job(rank, job, case, report, dense)
        except Exception:
            _write_error(job, traceback.format_exc())
            raise
        wire_bytes[*key, job.combination, job.seed] = summary["wire_bytes"]
        if rank.rank == 0:
            folder = case_folder(_runs(job), job.case, job.settings.variant)
            write_baselines(folder, job.case, case, digest(job.settings.variant))
            send(_row(index, summary, unchanged=done[index] is not None))


def _train_job(
    rank: Rank, job: Job, case: AnyCase, report: Callable[[Progress], None], dense: int | None
) -> dict[str, Any]:
    plan = make_plan(job.combination, job.settings)
    trainer = Trainer(case, job.settings, plan, job.seed, rank)
    resume = job.resume and resumable(job.folder, _config(job))
    if rank.rank == 0:
        (job.folder / "summary.json").unlink(missing_ok=True)
        write_json(job.folder / "config.json", _config(job))
        write_json(job.folder / "environment.json", environment(rank.device_name(), rank.backend))
    result, model = trainer.run(report, Keep(job.folder / CHECKPOINT, resume))
    sent = sum(step["wire_bytes"] for step in result.steps)
    dense = sent if "compress" not in job.combination else dense
    summary = _identity(job) | {
        "variant": job.settings.variant,
        "metric": case.metric,
        "higher_is_better": case.higher_is_better,
        "value": result.value,
        "metrics": {name: finite(value) for name, value in result.scores.items()},
        "wire_bytes": sent,
        "compression_factor": dense / sent if sent and dense is not None else None,
        "peak_memory_bytes": result.peak_memory_bytes,
        "step_seconds": result.median_seconds(),
        "skipped_steps": sum(step["skipped"] for step in result.steps),
        "num_parameters": result.num_parameters,
        "train_samples": len(trainer.train),
        "test_samples": len(trainer.test),
        "epochs": result.epochs,
        "seconds": result.seconds,
        "inputs": _inputs(job),
    }
    if rank.rank == 0:
        _write_result(job, result, model, summary)
    return summary


def _config(job: Job) -> dict[str, Any]:
    return _identity(job) | {
        "ranks": job.ranks,
        "plan": make_plan(job.combination, job.settings).to_config(),
        "settings": to_config(job.settings),
        "command": job.command,
    }


def _inputs(job: Job) -> str:
    return digest({key: value for key, value in _config(job).items() if key != "command"})


def _finished(job: Job) -> dict[str, Any] | None:
    return None if job.again else finished(job.folder, _config(job), _inputs(job))


def _of_rank_0(found: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    """What rank 0 read, on every rank: files may change while the others look."""
    dist.broadcast_object_list(found)
    return found


def _row(index: int, summary: dict[str, Any], *, unchanged: bool) -> Message:
    return Message(index, None, {name: summary[name] for name in ROW_KEYS}, unchanged)


def _runs(job: Job) -> Path:
    return next(parent.parent for parent in job.folder.parents if parent.name == job.case)


def _write_result(job: Job, result: Result, model: nn.Module, summary: dict[str, Any]) -> None:
    write_jsonl(job.folder / "steps.jsonl", result.steps)
    save_model(model, job.folder)
    if job.combination == COMBINATIONS[-1] and job.seed == 0:
        header = {"schema": SCHEMA, "case": job.case, "combination": job.combination, "ranks": job.ranks}
        write_json(job.folder.parents[1] / "flow.json", header | flow(result))
    write_json(job.folder / "summary.json", summary)  # last: a run with a summary is whole
    shutil.rmtree(job.folder / CHECKPOINT, ignore_errors=True)


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
