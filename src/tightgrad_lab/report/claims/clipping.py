"""What clipping is said to do: no explosion, stable training, above all in deep and recurrent networks."""

from collections.abc import Callable

from tightgrad_lab.report.claims.judgement import Judgement
from tightgrad_lab.report.files import Runs


def explosion(runs: Runs) -> Judgement:
    """Clipping prevents explosion."""
    return Judgement("open", (), (2,))


def recurrent(runs: Runs) -> Judgement:
    """Above all in recurrent networks."""
    return Judgement("open", (), (2,))


def stable(runs: Runs) -> Judgement:
    """Clipping keeps training stable."""
    return Judgement("open", (), (7,))


JUDGES: dict[str, Callable[[Runs], Judgement]] = {"explode": explosion, "recurrent": recurrent, "stable": stable}
