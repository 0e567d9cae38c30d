"""Logs that other tools write: CSV, JSON, JSON lines and text, as far as they name a loss or a norm of the gradient."""

import ast
import csv
import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from tightgrad_lab.errors import ArgumentError

ENDINGS = ("csv", "tsv", "json", "jsonl", "log", "txt", "out")
IN_FOLDERS = ("metrics.csv", "trainer_state.json", "*.jsonl", "*.csv", "*.tsv", "*.log", "*.txt", "*.out")
NAMES = {
    "step": ("global_step", "_step", "iter", "iteration", "it", "update", "num_updates", "batch"),
    "loss": ("train_loss", "train_loss_step", "training_loss", "loss_train"),
    "grad_norm": ("gradnorm", "gnorm", "norm", "total_norm", "gradient_norm", "grad_norm_total", "grad_2.0_norm_total"),
    "clip_coef": ("clip_factor", "clip_coefficient"),
}
FIELDS = {other: name for name, others in NAMES.items() for other in (name, *others)}
MEMORY = {"memory_bytes": 1.0, "memory_mb": 1e6, "mem_mb": 1e6, "memory_gb": 1e9, "mem_gb": 1e9}
ELSEWHERE = re.compile(r"(^|[/_ ])(val|valid|validation|eval|test)([/_ ]|$)")
"""In names of what is not measured in training."""
PAIR = re.compile(
    r"(?P<name>[A-Za-z_][\w./]*(?: ?norm| loss)?)['\"]?[ \t]*[:=|]?[ \t]*['\"(\[]?"
    r"(?P<value>[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)\b)",
    re.IGNORECASE,
)


def records_of(path: Path) -> list[dict[str, Any]]:
    """Read a log: one record for each step, with the names of `StepRecord`.

    Raises:
        ArgumentError: it names neither losses nor norms; the message says which names were found.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = list(_rows(path.suffix[1:].lower(), text))
    found = [record for row in rows if {"loss", "grad_norm"} & (record := _record(row)).keys()]
    if not found:
        names = list(dict.fromkeys(str(name) for row in rows for name in row))[:12]
        raise ArgumentError(
            f"{path} names no loss and no grad_norm"
            + (f", only {', '.join(names)}" if names else "")
            + "; doctor reads logs with lines such as `step 10 loss 2.3 grad_norm 1.1`, CSV, JSON or TensorBoard files."
        )
    return _by_step(found)


def _rows(ending: str, text: str) -> Iterator[dict[str, Any]]:
    if ending in ("csv", "tsv"):
        try:
            yield from csv.DictReader(text.splitlines(), delimiter="\t" if ending == "tsv" else ",")
        except csv.Error as error:
            raise ArgumentError(f"this table cannot be read: {error}") from None
    elif ending == "json":
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArgumentError(f"this JSON file cannot be read: {error}") from None
        listed = (
            next((one for one in whole.values() if isinstance(one, list)), []) if isinstance(whole, dict) else whole
        )
        yield from (row for row in (listed if isinstance(listed, list) else []) if isinstance(row, dict))
    else:
        for line in re.split(r"[\r\n]+", text):  # progress bars write over their line
            yield _literal(line) or _pairs(line)


def _literal(line: str) -> dict[str, Any] | None:
    """A line that is, or ends in, a dictionary of JSON or Python."""
    start, end = line.find("{"), line.rfind("}")
    if start < 0 or end < start:
        return None
    inner = line[start : end + 1]
    for read in (json.loads, lambda one: ast.literal_eval(re.sub(r"\b(nan|inf)\b", r"'\1'", one))):
        try:
            found = read(inner)
        except (ValueError, SyntaxError, TypeError, RecursionError):
            continue
        if isinstance(found, dict):
            return {**_pairs(line[:start]), **found}
    return None


def _pairs(line: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for match in PAIR.finditer(line):
        found.setdefault(match["name"].strip(), match["value"])
    return found


def _record(row: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, value in row.items():
        if ELSEWHERE.search(str(name).lower()):
            continue
        plain = str(name).lower().strip().replace(" ", "_").replace("-", "_")
        plain = plain.rpartition("/")[2] if "/" in plain else plain
        number = _number(value)
        if number is None:
            continue
        if plain in MEMORY:
            record.setdefault("memory_bytes", number * MEMORY[plain])
        elif plain in FIELDS:
            record.setdefault(FIELDS[plain], number)
    return record


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # a list of rates, a name, a whole number of 400 digits
        return None


def _by_step(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for each step; numbered where steps are missing or begin again."""
    found = list(records)
    steps = [record.get("step") for record in found]
    known = [int(step) for step in steps if step is not None and abs(step) < 2**53]
    rises = len(known) == len(found) and all(one <= two for one, two in pairwise(known))
    merged: dict[int, dict[str, Any]] = {}
    for place, record in enumerate(found):
        step = known[place] if rises else place
        merged.setdefault(step, {"skipped": False}).update({**record, "step": step})
    return list(merged.values())
