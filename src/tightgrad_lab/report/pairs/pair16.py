"""Pair 16: the language cases."""

from tightgrad_lab.report.model import Pair

PAIR = Pair(
    number=16,
    chapter=8,
    files=("text/*/seed*/summary.json", "translation/*/seed*/summary.json"),
    command="tightgrad lab text translation",
)
