"""Where compression saves time: steps over links of several speeds, from `link_speeds`."""

from collections.abc import Mapping
from typing import Any

from tightgrad_lab.report.claims.judgement import Fact, Finding, Number, Words, of_share
from tightgrad_lab.report.claims.link_advice import METHODS
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import read_best

PAIR = "link_speeds"
Row = Mapping[str, Any]


def faster_links(runs: Runs) -> Finding | None:
    """The links on which the best method's step is shorter than the dense one by what counts as paying."""
    result = read_best(runs.root, PAIR)
    if result is None or not result.table:
        return None
    rows = sorted(result.table, key=lambda row: float(row["gain"]))
    paying = sum(bool(row["pays"]) for row in rows)
    facts: dict[str, Fact] = {
        "paying": Number(paying, "count"),
        "count": Number(len(rows), "count"),
        **_named(rows[0], "least"),
        **_named(rows[-1], "most"),
    }
    return Finding("found.links", of_share(paying, len(rows)), facts, PAIR, result.source)


def slowest_link(runs: Runs) -> Finding | None:
    """The same number of steps in less time, on the slowest link."""
    result = read_best(runs.root, PAIR)
    if result is None or not result.table:
        return None
    row = min(result.table, key=lambda row: (float(row["bits_per_second"]), row["ranks"]))
    facts: dict[str, Fact] = {
        **_named(row, "most"),
        "best": Words((METHODS[row["best"]][0],)) if row["best"] in METHODS else str(row["best"]),
    }
    verdict = of_share(int(float(row["gain"]) > 1), 1)
    return Finding("found.seconds", verdict, facts, PAIR, result.source)


def _named(row: Row, key: str) -> dict[str, Fact]:
    return {
        key: Number(float(row["gain"]), "factor"),
        f"{key}_rate": Number(float(row["bits_per_second"]), "bits"),
        f"{key}_ranks": Number(row["ranks"], "count"),
    }
