"""Pair 1: what gradient clipping does, and every clip method compared."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=1,
    chapter=1,
    files=("pair01/result.json",),
    command="tightgrad lab --only 1",
)
