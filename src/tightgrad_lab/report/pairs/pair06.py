"""Pair 6: compression in distributed training."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=6,
    chapter=3,
    files=("pair06/result.json",),
    command="tightgrad lab --only 6",
)
