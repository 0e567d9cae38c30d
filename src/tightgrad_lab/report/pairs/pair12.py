"""Pair 12: how compression is implemented, here and elsewhere."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=12,
    chapter=6,
    files=("pair12/result.json",),
    command="tightgrad lab --only 12",
)
