"""Pair 17: the time-series case."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=17,
    chapter=8,
    files=("series/*/seed*/summary.json",),
    command="tightgrad lab series",
)
