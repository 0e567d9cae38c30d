"""Pair 7: the role of clipping in large-model training."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=7,
    chapter=4,
    files=("pair07/figure.json", "pair07/table.json"),
    command="tightgrad lab pair07",
)
