"""Finds and reads the records of a run: ours, TensorBoard event files, or a log of any other tool."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tightgrad as tg
from tightgrad_lab.doctor.events import read_events
from tightgrad_lab.doctor.history import Failure, History, Record
from tightgrad_lab.doctor.tables import ENDINGS, IN_FOLDERS, records_of
from tightgrad_lab.errors import ArgumentError

STEPS = "steps.jsonl"
_RANK_FILE = re.compile(r"\.rank(\d+)\.jsonl$")
EVENTS = "events.out.tfevents.*"
_NAMES = {"train_loss": "loss", "total_norm": "grad_norm", "gradient_norm": "grad_norm", "train_loss_step": "loss"}
"""Names that other tools give to the fields of `StepRecord`."""


def read_history(path: Path) -> History:
    """Read a run.

    Args:
        path: a folder with steps.jsonl (and steps.rank1.jsonl, ..., plan.json or config.json), with TensorBoard event
            files or with another log, or one such file.

    Raises:
        ArgumentError: there is nothing that can be read; the message says what was looked for.
    """
    if not path.exists():
        raise ArgumentError(
            f"there is no {path}; doctor reads a folder with {STEPS}, TensorBoard event files or a log."
        )
    if path.is_file():
        if path.name == STEPS or _RANK_FILE.search(path.name):
            return _of_jsonl([path])
        return _of_log(path) if path.suffix[1:].lower() in ENDINGS else _of_events([path])
    if (path / STEPS).is_file():
        return _of_jsonl(list(rank_files(path).values()))
    events = sorted(path.rglob(EVENTS))
    if events:
        return _of_events(events)
    for pattern in IN_FOLDERS:
        if logs := sorted(path.rglob(pattern), key=lambda one: one.stat().st_mtime):
            return _of_log(logs[-1])
    raise ArgumentError(
        f"{path} has neither {STEPS} nor TensorBoard event files, nor a log ({', '.join(IN_FOLDERS)}); write records "
        "with tg.attach(..., records=[tg.records.Jsonl(folder)])."
    )


def rank_files(folder: Path) -> dict[int, Path]:
    """Return the files of steps in a folder, by rank."""
    found = {int(match[1]): path for path in folder.glob("*.jsonl") if (match := _RANK_FILE.search(path.name))}
    if (folder / STEPS).is_file():
        found[0] = folder / STEPS
    return {rank: found[rank] for rank in sorted(found)}


def _of_jsonl(paths: list[Path]) -> History:
    failure = None
    ranks = []
    for path in paths:
        records, failed = _records(path)
        ranks.append(records)
        failure = failure or failed
    if not ranks[0] and failure is None:
        raise ArgumentError(f"{paths[0]} has no records.")
    return History(ranks, _plan(paths[0].parent), failure, str(paths[0]))


def _records(path: Path) -> tuple[list[Record], Failure | None]:
    records: list[Record] = []
    failure = None
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            if "error" in line:
                step = int(records[-1]["step"]) + 1 if records else 0
                failure = Failure(step, line["error"], line.get("message", ""), bool(line.get("out_of_memory")))
                continue
            step = int(line["step"])
        except (ValueError, TypeError, KeyError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise ArgumentError(f"{path}, line {number}: not a step record ({why}).") from None
        # A run that was resumed from an earlier step: what came after that is no part of it.
        while records and (records[-1]["step"] > step or (records[-1]["step"] == step and not _skipped(records[-1]))):
            records.pop()
        failure = None
        records.append(line)
    return records, failure


def _skipped(record: Record) -> bool:
    return bool(record.get("skipped"))


def _plan(folder: Path) -> tg.Plan | None:
    for name, key in (("plan.json", None), ("config.json", "plan")):
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return tg.Plan.from_config(config if key is None else config[key])
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(f"{path} is not a plan: {error}") from None
    return None


def _of_log(path: Path) -> History:
    return History([records_of(path)], source=str(path))


def _of_events(paths: Iterable[Path]) -> History:
    steps: dict[int, dict[str, Any]] = {}
    for path in paths:
        for step, tag, value in read_events(path):
            steps.setdefault(step, {"step": step})[_field(tag)] = value
    if not steps:
        raise ArgumentError(
            f"{', '.join(map(str, paths))}: not a TensorBoard event file with scalars, and not the {STEPS} of a run; "
            "write records with tg.attach(..., records=[tg.records.Jsonl(folder)])."
        )
    records = [steps[step] for step in sorted(steps)]
    for record in records:
        record["skipped"] = bool(record.get("skipped"))
    return History([records], source=", ".join(map(str, paths)))


def _field(tag: str) -> str:
    name = tag.rpartition("/")[2]
    return _NAMES.get(name, name)
