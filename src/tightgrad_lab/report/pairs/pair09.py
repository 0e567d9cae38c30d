"""Pair 9: the role of accumulation in large-model training."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=9,
    chapter=5,
    files=("pair09/result.json",),
    command="tightgrad lab --only 9",
)
