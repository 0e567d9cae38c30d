"""What produced the numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tightgrad_lab.report import units
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import read_result
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import NUMBERS

CASES = ("image", "text", "translation", "series")
_SHOWN = ("python", "torch", "tightgrad", "platform", "processor", "cores", "memory_bytes", "device")


@dataclass(frozen=True, slots=True)
class Environment:
    """One distinct environment and how many runs came from it."""

    rows: list[tuple[str, str]]
    runs: int
    first: str
    last: str


def _value(key: str, value: object) -> str:
    if key == "memory_bytes" and isinstance(value, int | float):
        return units.bytes_text(value)
    return str(value)


def environments(runs: Runs, texts: Texts) -> list[Environment]:
    """Distinct environments of the finished runs; neither its time nor its backend makes a run's distinct."""
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, Any]]] = {}
    for known in _known(runs):
        rows = tuple((texts(f"env.{k}"), _value(k, known[k])) for k in _SHOWN if known.get(k) is not None)
        groups.setdefault(rows, []).append(known)
    return [_environment(list(rows), members, texts) for rows, members in groups.items()]


def _environment(rows: list[tuple[str, str]], members: list[Mapping[str, Any]], texts: Texts) -> Environment:
    times = [str(known["time"]) for known in members]
    backends = sorted({str(known["backend"]) for known in members if known.get("backend")})
    if backends:
        rows = [*rows, (texts("env.backend"), texts.join(backends))]
    return Environment(rows, len(members), min(times), max(times))


def _known(runs: Runs) -> Iterator[Mapping[str, Any]]:
    for name in CASES:
        case = runs.case(name)
        for run in case.runs if case else ():
            yield run.environment
    for name in NUMBERS:
        result = read_result(runs.root, name)
        if result is not None:
            yield result.environment
