"""What is said of a script."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Remark:
    """A fault, or something worth knowing.

    Args:
        kind: what two remarks on the same thing share.
        cause: what it is, the numbers first.
        place: file and line in the script.
        where: on how many ranks, and in which window.
        cure: what to do.
        wrong: whether it is a fault.
        low, high: least and largest weight of a target, relative to what it is due; None if that is not in question.
        mass: of a window, relative to what it is due; None likewise.
    """

    kind: str
    cause: str
    place: str
    where: str
    cure: str = ""
    wrong: bool = True
    low: float | None = None
    high: float | None = None
    mass: float | None = None


def short(place: str) -> str:
    """File name and line."""
    return place.rpartition("/")[2]
