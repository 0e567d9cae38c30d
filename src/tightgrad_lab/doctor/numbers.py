"""Statistics that one wild value does not spoil."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def rounded(value: float) -> float:
    """To two digits, as a person would set it."""
    return float(f"{value:.2g}")


def medians_before(values: Sequence[float], width: int, least: int) -> list[float | None]:
    """For each value, the median of at most `width` values before it; None where there are fewer than `least`."""
    return [median(values[max(0, place - width) : place]) if place >= least else None for place in range(len(values))]


@dataclass(frozen=True)
class Line:
    """A least-squares line: its slope, the standard error of that, and the share of variance it explains."""

    slope: float
    error: float
    explained: float


def line(xs: Sequence[float], ys: Sequence[float]) -> Line | None:
    """The line through points; None if all xs are equal or there are fewer than three."""
    mean_x, mean_y = fmean(xs) if xs else 0.0, fmean(ys) if ys else 0.0
    spread = sum((x - mean_x) ** 2 for x in xs)
    if len(xs) < 3 or spread == 0:
        return None
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    total = sum((y - mean_y) ** 2 for y in ys)
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    error = math.sqrt(left / (len(xs) - 2) / spread)
    return Line(slope, error, 1 - left / total if total else 1.0)
