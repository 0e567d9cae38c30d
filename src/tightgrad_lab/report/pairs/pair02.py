"""Pair 2: clipping in recurrent networks."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=2,
    chapter=1,
    files=("pair02/result.json",),
    command="tightgrad lab --only 2",
)
