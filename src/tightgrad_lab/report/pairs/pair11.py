"""Pair 11: the role of compression in large-model training."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=11,
    chapter=6,
    files=("pair11/result.json",),
    command="tightgrad lab --only 11",
)
