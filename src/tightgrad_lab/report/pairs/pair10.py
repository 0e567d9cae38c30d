"""Pair 10: how accumulation is implemented, here and elsewhere."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=10,
    chapter=5,
    files=("pair10/result.json",),
    command="tightgrad lab --only 10",
)
