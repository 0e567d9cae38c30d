"""Runs an experiment and keeps what it found: runs/NAME/result.json, whole or not at all.

Where the machine lacks what an experiment needs, the result that is published with the package takes its place, with
its own environment and the reason.
"""

import json
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tightgrad.core.config import to_config
from tightgrad_lab.environment import environment
from tightgrad_lab.errors import LabError, RunError
from tightgrad_lab.experiments.experiment import Experiment, Report
from tightgrad_lab.experiments.inputs import digest
from tightgrad_lab.schema import PUBLISHED, SCHEMA, command, number
from tightgrad_lab.training.files import write_json


@dataclass(frozen=True)
class Outcome:
    """How an experiment ended.

    Args:
        status: "measured" now; "unchanged" since it was measured; "published" elsewhere; "missing" what it needs, and
            nothing is published.
        folder: where its files are.
        seconds: of the measurement.
        reason: what is missing.
    """

    status: Literal["measured", "unchanged", "published", "missing"]
    folder: Path
    seconds: float = 0.0
    reason: str = ""


def run_experiment(
    name: str, experiment: Experiment[Any], runs: Path, report: Report, *, full: bool = False, again: bool = False
) -> Outcome:
    """Measure, unless the result at hand has the same inputs.

    Args:
        name: of the pair.
        experiment: what to run.
        runs: the folder of all runs.
        report: told of the progress.
        full: the long settings.
        again: measure also if nothing has changed.

    Raises:
        RunError: the experiment failed; error.txt in its folder has the traceback.
    """
    folder = runs / name
    missing = experiment.missing()
    if missing is not None:
        return _published(name, folder, missing)
    settings = experiment.settings(full=full)
    read = [path for pattern in experiment.reads for path in runs.glob(pattern)]
    inputs = digest(to_config(settings), read)
    if not again and _inputs_of(folder / "result.json") == inputs:
        return Outcome("unchanged", folder)
    (folder / "error.txt").unlink(missing_ok=True)
    started = time.monotonic()
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            found = experiment.run(settings, report)
    except Exception as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        reason = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        raise RunError(f"{name} failed: {reason} (traceback: {folder / 'error.txt'})") from error
    finally:
        torch.set_num_threads(threads)
    seconds = time.monotonic() - started
    result = {
        "schema": SCHEMA,
        "pair": number(name),
        "command": command(name, full=full),
        "settings": to_config(settings),
        "environment": environment(found.device, found.backend),
        "seconds": seconds,
        "inputs": inputs,
        "published": None,
        "figure": found.figure,
        "table": found.table,
    }
    write_json(folder / "result.json", result)
    return Outcome("measured", folder, seconds)


def _inputs_of(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("inputs")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _published(name: str, folder: Path, reason: str) -> Outcome:
    source = PUBLISHED / f"{name}.json"
    own = folder / "result.json"
    if own.exists() and not _is_published(own):
        return Outcome("unchanged", folder)
    if not source.exists():
        return Outcome("missing", folder, reason=reason)
    result = json.loads(source.read_text(encoding="utf-8"))
    write_json(own, result | {"published": {"reason": reason}})
    return Outcome("published", folder, reason=reason)


def _is_published(path: Path) -> bool:
    return bool(json.loads(path.read_text(encoding="utf-8")).get("published"))
