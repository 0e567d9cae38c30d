"""Pair 7: the role of clipping in large-model training."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=7,
    chapter=4,
    files=("pair07/result.json",),
    command="tightgrad lab --only 7",
)
