"""Pair 14: common problems and their cures."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=14,
    chapter=7,
    files=("pair14/result.json",),
    command="tightgrad lab --only 14",
)
