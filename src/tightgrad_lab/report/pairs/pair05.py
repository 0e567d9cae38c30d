"""Pair 5: what gradient compression does, and every codec compared."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=5,
    chapter=3,
    files=("pair05/result.json",),
    command="tightgrad lab --only 5",
)
