"""Pair 8: how clipping is implemented, here and elsewhere."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=8,
    chapter=4,
    files=("pair08/result.json",),
    command="tightgrad lab --only 8",
)
