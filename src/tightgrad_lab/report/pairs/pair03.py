"""Pair 3: what gradient accumulation does, and what it costs."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=3,
    chapter=2,
    files=("pair03/result.json",),
    command="tightgrad lab --only 3",
)
