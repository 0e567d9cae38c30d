"""The three failures can be cured. From pair 14, which provokes each and applies what `tightgrad doctor` says."""

from collections.abc import Callable

from tightgrad_lab.report.claims.judgement import Judgement
from tightgrad_lab.report.files import Runs


def _cured(runs: Runs, name: str) -> Judgement:
    return Judgement("open", (), (14,))


JUDGES: dict[str, Callable[[Runs], Judgement]] = {
    "cure_vanishing": lambda runs: _cured(runs, "vanishing"),
    "cure_memory": lambda runs: _cured(runs, "memory"),
    "cure_precision": lambda runs: _cured(runs, "precision"),
}
