"""Flow charts: boxes, questions and the arrows between them, all in inches from the lower left corner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from tightgrad_lab.report.drawing import figures

Side = Literal["left", "right", "top", "bottom"]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Node:
    """A step of a flow chart, or a question if it is a diamond.

    Args:
        x: of its middle.
        y: of its middle.
        width: of its box.
        height: of its box.
        lines: its name, then what is written smaller below it.
        color: a name of `figures.COLORS`, for its edge.
        question: whether the flow branches here.
    """

    x: float
    y: float
    width: float
    height: float
    lines: tuple[str, ...]
    color: str = "muted"
    question: bool = False

    def side(self, side: Side) -> Point:
        """The middle of one of its sides."""
        across, up = {"left": (-0.5, 0.0), "right": (0.5, 0.0), "top": (0.0, 0.5), "bottom": (0.0, -0.5)}[side]
        return self.x + across * self.width, self.y + up * self.height


def node(figure: Figure, one: Node, size: float = figures.SIZE_LABEL) -> None:
    """Draw a step or a question with its lines in the middle."""
    style: dict[str, Any] = {
        "facecolor": figures.PAPER if one.question else figures.PANEL,
        "edgecolor": figures.COLORS[one.color],
        "linewidth": 1.1,
        "transform": figure.dpi_scale_trans,
        "zorder": 2,
    }
    if one.question:
        corners = [one.side("left"), one.side("top"), one.side("right"), one.side("bottom")]
        figure.add_artist(Polygon(corners, closed=True, **style))
    else:
        corner = (one.x - one.width / 2, one.y - one.height / 2)
        rounded = "round,pad=0,rounding_size=0.06"
        figure.add_artist(FancyBboxPatch(corner, one.width, one.height, boxstyle=rounded, **style))
    sizes = [size, *[min(size, 7.5)] * (len(one.lines) - 1)]
    heights = [figures.text_size(figure, line, own)[1] for line, own in zip(one.lines, sizes, strict=True)]
    gap = 0.045
    y = one.y + (sum(heights) + gap * (len(heights) - 1)) / 2
    for place, (line, own, tall) in enumerate(zip(one.lines, sizes, heights, strict=True)):
        color = figures.INK if place == 0 else figures.MUTED
        figures.inch_text(
            figure, one.x, y - tall / 2, line, own, color=color, ha="center", va="center", zorder=3, linespacing=1.25
        )
        y -= tall + gap


def arrow(figure: Figure, points: Sequence[Point], label: str = "", at: Point | None = None, **text: Any) -> None:
    """A line through points that ends in a head, with a word beside it at a point."""
    (x_from, y_from), (x, y) = points[-2], points[-1]
    long = max(abs(x - x_from), abs(y - y_from)) or 1.0
    along = ((x - x_from) / long, (y - y_from) / long)
    across = (-along[1], along[0])
    base = (x - 0.075 * along[0], y - 0.075 * along[1])
    ends = [*points[:-1], base]
    figures.inch_line(figure, [p[0] for p in ends], [p[1] for p in ends], color=figures.LINK, linewidth=1.4, zorder=1)
    tip = [(base[0] + s * 0.045 * across[0], base[1] + s * 0.045 * across[1]) for s in (-1, 1)]
    head = Polygon(
        [*tip, (x, y)],
        closed=True,
        facecolor=figures.LINK,
        edgecolor="none",
        transform=figure.dpi_scale_trans,
        zorder=2,
    )
    figure.add_artist(head)
    if label and at:
        style = {"color": figures.MUTED, "ha": "center", "va": "center", **text}
        figures.inch_text(figure, *at, label, figures.SIZE_SMALL, **style)


def between(begin: Node, end: Node) -> list[Point]:
    """From side to side of neighbours in a row or in a column."""
    if abs(begin.x - end.x) < 0.01:
        return [begin.side("bottom"), end.side("top")]
    return [begin.side("right"), end.side("left")] if begin.x < end.x else [begin.side("left"), end.side("right")]
