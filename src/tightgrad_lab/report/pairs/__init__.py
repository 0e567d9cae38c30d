"""The 17 pairs of the handbook, one file each, in order."""

from tightgrad_lab.report.model import Pair
from tightgrad_lab.report.pairs import (
    pair01,
    pair02,
    pair03,
    pair04,
    pair05,
    pair06,
    pair07,
    pair08,
    pair09,
    pair10,
    pair11,
    pair12,
    pair13,
    pair14,
    pair15,
    pair16,
    pair17,
)

PAIRS: tuple[Pair, ...] = (
    pair01.PAIR,
    pair02.PAIR,
    pair03.PAIR,
    pair04.PAIR,
    pair05.PAIR,
    pair06.PAIR,
    pair07.PAIR,
    pair08.PAIR,
    pair09.PAIR,
    pair10.PAIR,
    pair11.PAIR,
    pair12.PAIR,
    pair13.PAIR,
    pair14.PAIR,
    pair15.PAIR,
    pair16.PAIR,
    pair17.PAIR,
)

__all__ = ["PAIRS"]
