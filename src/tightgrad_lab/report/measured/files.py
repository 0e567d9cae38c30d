"""Reads runs/: every value the report shows enters here, checked."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.schema import COMBINATIONS, SCHEMA


@dataclass(frozen=True, slots=True)
class Run:
    """One training run: one combination, one seed."""

    path: Path
    combination: str
    seed: int
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Case:
    """All finished runs of one case study, or of one other variant of it.

    Attributes:
        flow: the measured flow of one step, if there is one.
        baselines: scores of simple methods on the same test samples, by the method's name.
    """

    name: str
    runs: tuple[Run, ...]
    flow: Mapping[str, Any] | None
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def combinations(self) -> dict[str, dict[int, Run]]:
        """Combination -> seed -> run, in the order of the factorial."""
        found: dict[str, dict[int, Run]] = {}
        for name in COMBINATIONS:
            seeds = {run.seed: run for run in self.runs if run.combination == name}
            if seeds:
                found[name] = dict(sorted(seeds.items()))
        return found

    def values(self, combination: str, key: str) -> dict[int, float]:
        """One quantity of the summaries, by seed."""
        return {seed: float(run.summary[key]) for seed, run in self.combinations[combination].items()}

    @property
    def seeds(self) -> int:
        """The largest number of seeds that any combination has."""
        return max(len(seeds) for seeds in self.combinations.values())

    def scores(self, combination: str, name: str) -> dict[int, float]:
        """One score of the summaries, by seed; those without it are left out."""
        runs = self.combinations[combination].items()
        found = {seed: (run.summary.get("metrics") or {}).get(name) for seed, run in runs}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is better."""
        return bool(self.runs[0].summary.get("higher_is_better", True))

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return next(parent.parent for parent in self.runs[0].path.parents if parent.name == self.name)

    @property
    def command(self) -> str:
        return " · ".join(sorted({str(run.config["command"]) for run in self.runs}))


@dataclass
class Runs:
    """The folder that `tightgrad lab` writes. Cases are read when asked for, once."""

    root: Path
    unfinished: list[str] = field(default_factory=list)
    _cases: dict[str, Case | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ReportError(f"There is no folder {self.root}. Run `tightgrad lab` first, or name another folder.")

    def has(self, pattern: str) -> bool:
        """Whether at least one file under runs/ matches the glob pattern."""
        return any(self.root.glob(pattern))

    def measured(self, name: str) -> bool:
        """Whether the experiment of a pair has left a result, here or with the package."""
        below = f"{name}/result.json"
        return self.has(below) or self.has(f"published/{below}")

    def case(self, name: str) -> Case | None:
        """The case, or None if no run of it is finished."""
        if name not in self._cases:
            self._cases[name] = self._read_case(name, self.root / name)
        return self._cases[name]

    def variants(self, name: str) -> dict[str, Case]:
        """The other variants of a case that have finished runs, by name."""
        folders = sorted(path for path in (self.root / name / "variants").glob("*") if path.is_dir())
        found = {folder.name: self._read_case(name, folder) for folder in folders}
        return {variant: case for variant, case in found.items() if case is not None}

    def _read_case(self, name: str, folder: Path) -> Case | None:
        runs = []
        for seed_folder in sorted(folder.glob("*/seed*")):
            if not seed_folder.is_dir():
                continue
            if not (seed_folder / "summary.json").is_file():
                self.unfinished.append(seed_folder.relative_to(self.root).as_posix())
                continue
            runs.append(read_run(seed_folder, name))
        if not runs:
            return None
        flow = folder / "flow.json"
        measured = read_flow(flow, name) if flow.is_file() else None
        return Case(name, tuple(runs), measured, read_baselines(folder / "baselines.json", name))


def _fail(path: Path, what: str, case: str) -> ReportError:
    return ReportError(f"{path}: {what}. Delete {path.parent} and run `tightgrad lab {case}` again.")


def _parse(path: Path, text: str, case: str, line: str = "") -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _fail(path, f"{line}not JSON ({error.msg} at column {error.colno})", case) from error
    if not isinstance(value, dict):
        raise _fail(path, f"{line}a {type(value).__name__} where a JSON object is expected", case)
    return value


def _load(path: Path, case: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise _fail(path, "the file is missing", case) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _fail(path, f"cannot be read ({error})", case) from error
    return _parse(path, text, case)


Check = Callable[[Any], bool]


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(value: Any) -> bool:
    return _real(value) and math.isfinite(value) and value >= 0


def _finite(value: Any) -> bool:
    return _real(value) and math.isfinite(value)


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


_WORDS = {
    _size: "a finite number >= 0",
    _finite: "a finite number",
    _real: "a number",
    _text: "a text",
    _object: "an object",
}
_CONFIG: dict[str, Check] = {"command": _text, "settings": _object, "plan": _object, "ranks": _size}
_ENVIRONMENT: dict[str, Check] = {"python": _text, "torch": _text, "platform": _text, "time": _text}
_SUMMARY: dict[str, Check] = {
    "metric": _text,
    "value": _finite,
    "wire_bytes": _size,
    "compression_factor": _maybe(_size),
    "peak_memory_bytes": _size,
    "step_seconds": _size,
    "skipped_steps": _size,
    "seconds": _size,
}
_EPOCH: dict[str, Check] = {"epoch": _size, "train_loss": _maybe(_real), "value": _maybe(_real)}
_STEP: dict[str, Check] = {
    "step": _size,
    "loss": _maybe(_real),
    "grad_norm": _maybe(_real),
    "clip_coef": _maybe(_real),
    "wire_bytes": _size,
}


def _check(path: Path, data: Mapping[str, Any], checks: Mapping[str, Check], case: str, line: str = "") -> None:
    for key, check in checks.items():
        if key not in data and not check(None):
            raise _fail(path, f'{line}the key "{key}" is missing', case)
        if not check(data.get(key)):
            expected = next((words for known, words in _WORDS.items() if known is check), "a number or null")
            raise _fail(path, f'{line}"{key}" is {json.dumps(data.get(key))}, expected {expected}', case)


def _identity(path: Path, data: Mapping[str, Any], expected: Mapping[str, Any], case: str) -> None:
    for key, value in expected.items():
        if data.get(key) != value:
            raise _fail(path, f'"{key}" is {json.dumps(data.get(key))}, expected {json.dumps(value)}', case)


def read_run(folder: Path, case: str) -> Run:
    """One seed folder with its four files."""
    name, seed_text = folder.parent.name, folder.name.removeprefix("seed")
    if name not in COMBINATIONS:
        raise _fail(folder / "summary.json", f"unknown combination {name!r}, known are {', '.join(COMBINATIONS)}", case)
    if not seed_text.isdigit():
        raise _fail(folder / "summary.json", f"the folder {folder.name!r} does not end in a seed number", case)
    identity = {"schema": SCHEMA, "case": case, "combination": name, "seed": int(seed_text)}
    config, summary = _load(folder / "config.json", case), _load(folder / "summary.json", case)
    environment = _load(folder / "environment.json", case)
    _identity(folder / "config.json", config, identity, case)
    _identity(folder / "summary.json", summary, identity, case)
    _check(folder / "config.json", config, _CONFIG, case)
    _check(folder / "environment.json", environment, _ENVIRONMENT, case)
    _check(folder / "summary.json", summary, _SUMMARY, case)
    epochs = summary.get("epochs", [])
    if not isinstance(epochs, list) or not all(isinstance(epoch, dict) for epoch in epochs):
        raise _fail(folder / "summary.json", '"epochs" is not a list of objects', case)
    for number, epoch in enumerate(epochs):
        _check(folder / "summary.json", epoch, _EPOCH, case, f"epochs[{number}]: ")
    return Run(folder, name, int(seed_text), config, environment, summary, read_steps(folder / "steps.jsonl", case))


def read_steps(path: Path, case: str) -> tuple[Mapping[str, Any], ...]:
    """The records of every optimizer step."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise _fail(path, "the file is missing", case) from error
    steps = []
    for number, text in enumerate(lines, start=1):
        where = f"line {number}: "
        record = _parse(path, text, case, where)
        _check(path, record, _STEP, case, where)
        steps.append(record)
    return tuple(steps)


def read_flow(path: Path, case: str) -> Mapping[str, Any]:
    """The measured stages of one optimizer step."""
    flow = _load(path, case)
    _identity(path, flow, {"schema": SCHEMA, "case": case}, case)
    stages = flow.get("stages")
    if not isinstance(stages, list) or not stages:
        raise _fail(path, '"stages" is not a list with at least one stage', case)
    numbers = ("bytes", "seconds", "num_parameters", "micro_batches", "residual_norm", "grad_norm", "clip_coef")
    for number, stage in enumerate(stages):
        where = f"stages[{number}]: "
        if not isinstance(stage, dict):
            raise _fail(path, f"{where}not an object", case)
        _check(path, stage, {"id": _text}, case, where)
        _check(path, stage, {key: _maybe(_size) for key in numbers}, case, where)
        shape = stage.get("shape", [])
        if not isinstance(shape, list) or not all(_size(size) for size in shape):
            raise _fail(path, f'{where}"shape" is {json.dumps(shape)}, expected a list of sizes', case)
    return flow


def read_baselines(path: Path, case: str) -> Mapping[str, Mapping[str, float]]:
    """Scores of simple methods, by name; empty without the file."""
    if not path.is_file():
        return {}
    found = _load(path, case).get("baselines")
    whole = isinstance(found, dict) and all(isinstance(scores, dict) for scores in found.values())
    if (
        whole
        and isinstance(found, dict)
        and all(_finite(value) for scores in found.values() for value in scores.values())
    ):
        return found
    raise _fail(path, '"baselines" is not an object of objects of numbers', case)


def find(data: Any, key: str) -> Any:
    """The first value stored under `key` anywhere in nested JSON, or None."""
    if isinstance(data, Mapping):
        if key in data:
            return data[key]
        data = list(data.values())
    if isinstance(data, list):
        for item in data:
            found = find(item, key)
            if found is not None:
                return found
    return None
