"""Pair 4: accumulation in large-model training."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=4,
    chapter=2,
    files=("pair04/result.json",),
    command="tightgrad lab --only 4",
)
