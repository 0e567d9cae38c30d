"""The three failures can be cured: `common_failures` provokes each and applies what `tightgrad doctor` says."""

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from tightgrad_lab.report.claims.judgement import Fact, Finding, Judgement, Number, Unit, Words, judgement, of_share
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import Result, read_best

PAIR = "common_failures"
FAILURES = {
    "cure_vanishing": ("over_clipping",),
    "cure_memory": ("graph_kept_alive", "out_of_memory"),
    "cure_precision": ("precision_lost", "stale_warm_start"),
}
"""The claim, and the problems of table 14 that it is about."""
UNITS: dict[str, Unit] = {
    "loss": "number",
    "growth": "bytes",
    "steps": "count",
    "difference": "percent",
    "gain": "factor",
}
Row = Mapping[str, Any]


def cured(runs: Runs, claim: str) -> Judgement:
    """Of the failing runs of these problems: those that are free of the problem after the cure."""
    result = read_best(runs.root, PAIR)
    if result is None:
        return Judgement("open", (), (PAIR,))
    rows = [row for row in result.table if row["problem"] in FAILURES[claim]]
    return judgement([_one(result, row) for row in rows], PAIR)


def _one(result: Result, row: Row) -> Finding:
    seeds = len(row["before"])
    facts: dict[str, Fact] = {
        "problem": Words((f"problem.{row['problem']}",)),
        "named": Number(row["named"], "count"),
        "cured": Number(row["cured"], "count"),
        "count": Number(seeds, "count"),
        "metric": Words((f"metric14.{row['metric']}",)),
        "before": _mean(row["before"], UNITS[row["metric"]]),
        "after": _mean(row["after"], UNITS[row["metric"]]),
    }
    return Finding("found.cured", of_share(row["cured"], seeds), facts, PAIR, result.source)


def _mean(values: list[float | None], unit: Unit) -> Fact:
    known = [value for value in values if value is not None]
    return Words(("common_failures.table.diverged",)) if len(known) < len(values) else Number(fmean(known), unit)


JUDGES: dict[str, Callable[[Runs], Judgement]] = {
    "cure_vanishing": lambda runs: cured(runs, "cure_vanishing"),
    "cure_memory": lambda runs: cured(runs, "cure_memory"),
    "cure_precision": lambda runs: cured(runs, "cure_precision"),
}
