"""What produced the numbers."""

from dataclasses import dataclass

from tightgrad_lab.report import units
from tightgrad_lab.report.files import Runs
from tightgrad_lab.report.texts import Texts

CASES = ("image",)  # the cases whose pairs are drawn
_SHOWN = ("python", "torch", "tightgrad", "platform", "processor", "cores", "memory_bytes", "device", "backend")


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
    """Distinct environments of the finished runs; the time of a run does not make it distinct."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name in CASES:
        case = runs.case(name)
        for run in case.runs if case else ():
            known = run.environment
            rows = tuple((texts(f"env.{k}"), _value(k, known[k])) for k in _SHOWN if known.get(k) is not None)
            groups.setdefault(rows, []).append(str(known["time"]))
    return [Environment(list(rows), len(found), min(found), max(found)) for rows, found in groups.items()]
