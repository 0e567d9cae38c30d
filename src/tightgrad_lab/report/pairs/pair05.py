"""Pair 5: what gradient compression does, and every codec compared."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=5,
    chapter=3,
    files=("pair05/figure.json", "pair05/table.json"),
    command="tightgrad lab pair05",
)
