"""Labels for crowded points: columns beside them, in the order of the points, joined to them by lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Box = tuple[float, float, float, float]
GUTTER = 0.3
_PAD = 0.05
_TOGETHER = 0.4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a label begins: the middle of the edge that faces its point; it extends to the right or to the left."""

    x: float
    y: float
    right: bool


@dataclass(frozen=True, slots=True)
class _Column:
    members: tuple[int, ...]
    low: float
    high: float
    right: bool


def _clusters(xs: Sequence[float]) -> list[list[int]]:
    order = sorted(range(len(xs)), key=lambda i: xs[i])
    clusters: list[list[int]] = []
    for i in order:
        if clusters and xs[i] - xs[clusters[-1][-1]] <= _TOGETHER:
            clusters[-1].append(i)
        else:
            clusters.append([i])
    return clusters


def _column(members: Sequence[int], xs: Sequence[float], widths: Sequence[float], frame: Box) -> _Column:
    """To the side that stays inside the frame and hides the fewest other points; right if both do."""
    width = max(widths[i] for i in members)
    nearest, farthest = min(xs[i] for i in members), max(xs[i] for i in members)
    sides = []
    for right in (True, False):
        low = farthest + GUTTER if right else nearest - GUTTER - width
        outside = max(0.0, frame[0] - low) + max(0.0, low + width - frame[2])
        hidden = sum(low <= x <= low + width for i, x in enumerate(xs) if i not in members)
        sides.append((outside, hidden, not right, low))
    _, _, left, low = min(sides)
    return _Column(tuple(members), low, low + width, not left)


def spread_out(targets: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles as near to ascending targets as their heights allow, in the same order, within low and high."""
    offsets = [0.0]
    for below, above in pairwise(heights):
        offsets.append(offsets[-1] + (below + above) / 2 + _PAD)
    blocks: list[tuple[float, int]] = []
    for target, offset in zip(targets, offsets, strict=True):
        mean, count = target - offset, 1
        while blocks and blocks[-1][0] > mean:
            before, others = blocks.pop()
            mean = (mean * count + before * others) / (count + others)
            count += others
        blocks.append((mean, count))
    least, most = low + heights[0] / 2, high - offsets[-1] - heights[-1] / 2
    bases = [max(least, min(mean, most)) for mean, count in blocks for _ in range(count)]
    return [base + offset for base, offset in zip(bases, offsets, strict=True)]


def place(spots: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: Box) -> list[Place]:
    """A place for the label of each spot, all in inches; labels do not overlap while the frame is high enough."""
    xs = [x for x, _ in spots]
    widths = [width for width, _ in sizes]
    columns = sorted((_column(members, xs, widths, frame) for members in _clusters(xs)), key=lambda found: found.low)
    groups: list[list[_Column]] = []
    for column in columns:
        if groups and column.low < max(other.high for other in groups[-1]):
            groups[-1].append(column)
        else:
            groups.append([column])
    places: dict[int, Place] = {}
    for group in groups:
        owner = {i: column for column in group for i in column.members}
        order = sorted(owner, key=lambda i: spots[i][1])
        middles = spread_out([spots[i][1] for i in order], [sizes[i][1] for i in order], frame[1], frame[3])
        for i, middle in zip(order, middles, strict=True):
            places[i] = Place(owner[i].low if owner[i].right else owner[i].high, middle, owner[i].right)
    return [places[i] for i in range(len(spots))]
