"""The state machine of a window: boxes for states, arrows for the transitions that were counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.model import NARROW, Layout

Point = tuple[float, float]
Edge = tuple[str, str]
_COLORS = {
    "micro_batch": "accumulate",
    "count": "accumulate",
    "vote": "accumulate",
    "cut": "accumulate",
    "reduce": "compress",
    "clip": "clip",
}
_HEAD = 0.055
_LOOP = 0.2


@dataclass(frozen=True, slots=True)
class Box:
    """A state's place, in inches."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> Point:
        return self.x + self.width / 2, self.y + self.height / 2

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def top(self) -> float:
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Arrow:
    """A line through points, for one transition or several, with their count beside it."""

    edges: tuple[Edge, ...]
    points: tuple[Point, ...]
    label: Point
    align: str = "center"


@dataclass(frozen=True, slots=True)
class Drawing:
    """Where everything goes."""

    height: float
    boxes: Mapping[str, Box]
    arrows: tuple[Arrow, ...]


FETCHES: tuple[Edge, ...] = (("fetch", "fetch"),)
REPEATS: tuple[Edge, ...] = (("micro_batch", "micro_batch"), ("micro_batch", "out_of_memory"))
VOTES: tuple[Edge, ...] = (("micro_batch", "vote"), ("out_of_memory", "vote"))


def _wide() -> Drawing:
    """Two rows: to the right above, back to the left below; cut and skip stand above the rows."""
    width, height, gap = 1.2, 0.66, 0.35
    low, middle, high = 0.12, 1.42, 2.52

    def at(column: float, y: float) -> Box:
        return Box(0.1 + column * (width + gap), y, width, height)

    boxes = {name: at(i, middle) for i, name in enumerate(("fetch", "count", "micro_batch", "vote", "guard"))}
    boxes |= {name: at(4 - i, low) for i, name in enumerate(("reduce", "clip", "step"))}
    boxes |= {"cut": at(2.5, high), "skip": at(4, high)}
    arrows = [
        _across(boxes, begin, end) for begin, end in (("fetch", "count"), ("count", "micro_batch"), ("vote", "guard"))
    ]
    arrows.append(_across(boxes, "micro_batch", "vote", VOTES))
    arrows += [_across(boxes, "reduce", "clip"), _across(boxes, "clip", "step")]
    for begin, end in (("guard", "skip"), ("guard", "reduce")):
        x, up = boxes[begin].middle[0], boxes[end].y > boxes[begin].y
        ends = (boxes[begin].top, boxes[end].y) if up else (boxes[begin].y, boxes[end].top)
        arrows.append(Arrow(((begin, end),), ((x, ends[0]), (x, ends[1])), (x + 0.07, sum(ends) / 2), "left"))
    fetch, micro, vote, cut = (boxes[name] for name in ("fetch", "micro_batch", "vote", "cut"))
    level = cut.middle[1]
    arrows.append(
        Arrow(
            (("vote", "cut"),),
            ((vote.middle[0], vote.top), (vote.middle[0], level), (cut.right, level)),
            (vote.middle[0] + 0.07, (vote.top + level) / 2),
            "left",
        )
    )
    arrows.append(
        Arrow(
            (("cut", "micro_batch"),),
            ((cut.x, level), (micro.middle[0], level), (micro.middle[0], micro.top)),
            (micro.middle[0] - 0.07, (micro.top + level) / 2),
            "right",
        )
    )
    above = high + height + 0.16
    skip, step = boxes["skip"], boxes["step"]
    arrows.append(
        Arrow(
            (("skip", "fetch"),),
            (
                (skip.middle[0], skip.top),
                (skip.middle[0], above),
                (fetch.middle[0], above),
                (fetch.middle[0], fetch.top),
            ),
            (fetch.middle[0] + 0.07, (above + fetch.top) / 2),
            "left",
        )
    )
    enters = fetch.middle[0] + 0.3
    arrows.append(
        Arrow(
            (("step", "fetch"),),
            ((step.x, step.middle[1]), (enters, step.middle[1]), (enters, fetch.y)),
            (enters + 0.07, (step.middle[1] + fetch.y) / 2),
            "left",
        )
    )
    for box, edges, shift in ((fetch, FETCHES, -0.3), (micro, REPEATS, 0.0)):
        x = box.middle[0] + shift
        turn = box.y - _LOOP
        points = ((x + 0.16, box.y), (x + 0.16, turn), (x - 0.16, turn), (x - 0.16, box.y))
        arrows.append(Arrow(edges, points, (x, turn - 0.09)))
    return Drawing(above + 0.12, boxes, tuple(arrows))


def _across(boxes: Mapping[str, Box], begin: str, end: str, edges: tuple[Edge, ...] = ()) -> Arrow:
    one, other = boxes[begin], boxes[end]
    y = one.middle[1]
    xs = (one.right, other.x) if other.x > one.x else (one.x, other.right)
    return Arrow(edges or ((begin, end),), ((xs[0], y), (xs[1], y)), (sum(xs) / 2, y + 0.1))


def _narrow() -> Drawing:
    """One column from above to below; cut and skip stand beside it."""
    width, height, gap, left = 1.5, 0.6, 0.26, 0.56
    names = ("fetch", "count", "micro_batch", "vote", "guard", "reduce", "clip", "step")
    bottom = 0.12
    total = bottom + len(names) * (height + gap) - gap
    boxes = {name: Box(left, total - i * (height + gap) - height, width, height) for i, name in enumerate(names)}
    beside, slim = left + width + 0.32, 0.92
    boxes["cut"] = Box(beside, boxes["vote"].top + gap / 2 - height / 2, slim, height)
    boxes["skip"] = Box(beside, boxes["guard"].y, slim, height)
    arrows = []
    for begin, end in pairwise(names):
        x, ys = boxes[begin].middle[0], (boxes[begin].y, boxes[end].top)
        edges = VOTES if begin == "micro_batch" else ((begin, end),)
        arrows.append(Arrow(edges, ((x, ys[0]), (x, ys[1])), (x + 0.07, sum(ys) / 2), "left"))
    fetch, micro, vote, cut, guard = (boxes[name] for name in ("fetch", "micro_batch", "vote", "cut", "guard"))
    skip, step = boxes["skip"], boxes["step"]
    across = cut.middle[0]
    low, high = vote.y + 0.14, micro.top - 0.14
    arrows.append(
        Arrow((("vote", "cut"),), ((vote.right, low), (across, low), (across, cut.y)), (vote.right + 0.16, low - 0.09))
    )
    arrows.append(
        Arrow(
            (("cut", "micro_batch"),),
            ((across, cut.top), (across, high), (micro.right, high)),
            (micro.right + 0.16, high + 0.09),
        )
    )
    arrows.append(_across(boxes, "guard", "skip"))
    edge = skip.right + 0.07
    arrows.append(
        Arrow(
            (("skip", "fetch"),),
            (
                (skip.right, guard.middle[1]),
                (edge, guard.middle[1]),
                (edge, fetch.middle[1]),
                (fetch.right, fetch.middle[1]),
            ),
            ((fetch.right + edge) / 2, fetch.middle[1] + 0.1),
        )
    )
    entry = fetch.middle[1] + 0.14
    arrows.append(
        Arrow(
            (("step", "fetch"),),
            ((step.x, step.middle[1]), (0.1, step.middle[1]), (0.1, entry), (fetch.x, entry)),
            (0.3, step.middle[1] + 0.1),
        )
    )
    for box, edges in ((fetch, FETCHES), (micro, REPEATS)):
        y, turn = box.middle[1] - 0.15, box.x - _LOOP
        points = ((box.x, y - 0.1), (turn, y - 0.1), (turn, y + 0.1), (box.x, y + 0.1))
        arrows.append(Arrow(edges, points, (turn - 0.04, y), "right"))
    return Drawing(total + 0.12, boxes, tuple(arrows))


def draw(
    layout: Layout, names: Mapping[str, str], facts: Mapping[str, Sequence[str]], counts: Mapping[Edge, int]
) -> Figure:
    """Draw.

    Args:
        layout: wide or narrow.
        names: of the states, by id.
        facts: up to two lines for each state.
        counts: how often each transition was taken.
    """
    drawing = _narrow() if layout is NARROW else _wide()
    figure = figures.canvas(layout.width, drawing.height)
    for arrow in drawing.arrows:
        _arrow(figure, arrow, sum(counts.get(edge, 0) for edge in arrow.edges))
    for state, box in drawing.boxes.items():
        _box(figure, box, state, names[state], facts.get(state, ()))
    return figure


def _arrow(figure: Figure, arrow: Arrow, count: int) -> None:
    color = figures.LINK if count else figures.FAINT
    (x0, y0), (x, y) = arrow.points[-2:]
    length = abs(x - x0) + abs(y - y0)
    across, up = (x - x0) / length, (y - y0) / length
    tail = (x - _HEAD * 1.6 * across, y - _HEAD * 1.6 * up)
    points = [*arrow.points[:-1], tail]
    figures.inch_line(figure, [p[0] for p in points], [p[1] for p in points], color=color, linewidth=1.2, zorder=1)
    tip = [(x, y), (tail[0] - _HEAD * up, tail[1] + _HEAD * across), (tail[0] + _HEAD * up, tail[1] - _HEAD * across)]
    figure.add_artist(
        Polygon(tip, closed=True, facecolor=color, edgecolor="none", transform=figure.dpi_scale_trans, zorder=1)
    )
    if count:
        figures.inch_text(figure, *arrow.label, str(count), 7.0, color=figures.MUTED, ha=arrow.align, va="center")


def _box(figure: Figure, box: Box, state: str, name: str, facts: Sequence[str]) -> None:
    to_inches: Any = figure.dpi_scale_trans
    figure.add_artist(
        FancyBboxPatch(
            (box.x, box.y),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=figures.PANEL,
            edgecolor=figures.FAINT,
            linewidth=0.9,
            transform=to_inches,
            zorder=2,
        )
    )
    color = figures.COLORS.get(_COLORS.get(state, ""), figures.MUTED)
    figure.add_artist(
        Rectangle((box.x + 0.08, box.top - 0.09), 0.18, 0.03, facecolor=color, transform=to_inches, zorder=3)
    )
    x, y = box.x + 0.08, box.top - 0.2
    figures.inch_text(figure, x, y, name, figures.SIZE_SMALL, va="center", zorder=3)
    for line, fact in enumerate(facts):
        figures.inch_text(figure, x, y - 0.17 - 0.14 * line, fact, 7.0, color=figures.MUTED, va="center", zorder=3)
