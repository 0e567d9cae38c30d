"""The three panels of figure 2: a step over a cliff, gradients on their way back in time, and what was learned."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.texts import Texts

Data = Mapping[str, Any]
LEVELS = 14
_DOT, _GAP = 0.075, 0.035


def bare(axes: Axes) -> None:
    """No ticks and no left edge: the grid carries the scale."""
    axes.grid(True, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, pad=3)


def cliff(axes: Axes, data: Data, texts: Texts) -> None:
    """Contours of the loss; where they crowd is the wall. Two descents, one of which leaves the picture."""
    loss = data["loss"]
    low, high = min(map(min, loss)), max(map(max, loss))
    levels = [low + (high - low) * (place + 0.5) / LEVELS for place in range(LEVELS)]
    axes.contour(data["weights"], data["biases"], loss, levels=levels, colors=[figures.LINK], linewidths=0.5)
    axes.set_xlim(data["weights"][0], data["weights"][-1])
    axes.set_ylim(data["biases"][0], data["biases"][-1])
    for way, color, width in (("without", figures.INK, 1.1), ("with", figures.COLORS["clip"], 1.9)):
        places = data[way]["places"]
        last = next((i for i, place in enumerate(places) if _far(axes, place)), len(places))
        shown = places[:last]
        axes.plot([w for w, _ in shown], [b for _, b in shown], color=color, linewidth=width, zorder=3)
        if last < len(places):
            _thrown(axes, shown[-1], places[last], texts)
        else:
            axes.plot(*shown[-1], "o", color=color, markersize=4, zorder=4)
            _say(axes, texts("temporal_order.figure.clipped"), shown[-1], (-4, -13), color, ha="right")
    begin = data["with"]["places"][0]
    axes.plot(*begin, "o", markerfacecolor=figures.PAPER, color=figures.INK, markersize=5, zorder=5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(length=0, pad=3)


def _far(axes: Axes, place: Sequence[float]) -> bool:
    """Whether a place lies further outside the picture than the picture is large."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    across, up = right - left, high - low
    return not (left - across <= place[0] <= right + across and low - up <= place[1] <= high + up)


def _thrown(axes: Axes, last: Sequence[float], out: Sequence[float], texts: Texts) -> None:
    """An arrow from the last place inside towards the place far outside, and where that is."""
    (_, right), (_, high) = axes.get_xlim(), axes.get_ylim()
    share = min((right - last[0]) / max(out[0] - last[0], 1e-9), (high - last[1]) / max(out[1] - last[1], 1e-9))
    end = (last[0] + 0.96 * share * (out[0] - last[0]), last[1] + 0.96 * share * (out[1] - last[1]))
    style = {"arrowstyle": "-|>", "color": figures.INK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, (last[0], last[1]), arrowprops=style, zorder=4)
    said = texts("temporal_order.figure.thrown", weight=f"{out[0]:.1f}", bias=f"{out[1]:.1f}")
    _say(axes, said, end, (6, 0), figures.INK, va="top", linespacing=1.3)


def _say(axes: Axes, said: str, place: Sequence[float], offset: tuple[int, int], color: str, **style: Any) -> None:
    """A word beside a place, on paper, so that no contour runs through it."""
    paper = {"facecolor": figures.PAPER, "edgecolor": "none", "pad": 1}
    point = (place[0], place[1])
    axes.annotate(
        said, point, offset, textcoords="offset points", fontsize=7.5, color=color, bbox=paper, zorder=6, **style
    )


def backward(axes: Axes, curves: Sequence[Data], texts: Texts) -> None:
    """The norm of the gradient at each time step, counted from the end; longer sequences in stronger lines."""
    longest = max(curve["length"] for curve in curves)
    for curve in curves:
        color = figures.COLORS["accumulate"] if curve["kind"] == "lstm" else figures.COLORS["clip"]
        strong = curve["length"] == longest
        steps = range(len(curve["norms"]))
        axes.plot(steps, curve["norms"], color=color, linewidth=1.6 if strong else 0.8, alpha=1 if strong else 0.45)
        if not strong:
            axes.plot([steps[-1]], curve["norms"][-1:], "o", color=color, markersize=2.2)
            continue
        key = "temporal_order.figure.curve.lstm" if curve["kind"] == "lstm" else "temporal_order.figure.curve.rnn"
        said = texts(key, gain=f"{curve['gain']:g}")
        axes.annotate(
            said, (steps[-1], curve["norms"][-1]), (4, 0), textcoords="offset points", fontsize=7.5, color=color,
            va="center", annotation_clip=False,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, longest)
    axes.xaxis.set_major_locator(FixedLocator([0, longest / 2, longest]))
    bare(axes)


def learned(figure: Figure, runs: Sequence[Data], kind: str, place: tuple[float, float, float], texts: Texts) -> None:
    """A row for each rate, without clipping and with it; a column for each length; a filled dot for each success.

    Args:
        figure: to draw on.
        runs: of all kinds.
        kind: "rnn" or "lstm".
        place: left, top and width in inches.
        texts: the words.
    """
    left, top, width = place
    own = [run for run in runs if run["kind"] == kind]
    lengths = sorted({run["length"] for run in own})
    rows = row_keys(own)
    head = 0.8
    step = (width - head) / len(lengths)
    for column, length in enumerate(lengths):
        x = left + head + (column + 0.5) * step
        figures.inch_text(
            figure, x, top, str(length), figures.SIZE_SMALL, color=figures.MUTED, ha="center", va="center"
        )
    for row, (rate, clipped) in enumerate(rows):
        y = top - 0.24 - 0.22 * row - 0.09 * (row // 2)
        color = figures.COLORS["clip"] if clipped else figures.MUTED
        name = texts("temporal_order.figure.clipped" if clipped else "temporal_order.figure.plain")
        figures.inch_text(figure, left, y, f"{rate:g}", figures.SIZE_SMALL, va="center")
        figures.inch_text(figure, left + 0.34, y, name, figures.SIZE_SMALL, color=color, va="center")
        for column, length in enumerate(lengths):
            found = [
                run for run in own if (run["learning_rate"], run["clipped"], run["length"]) == (rate, clipped, length)
            ]
            count = sum(bool(run["learned"]) for run in found)
            counted = step > 0.7
            x = left + head + (column + 0.5) * step - (len(found) * (_DOT + _GAP) + 0.22 * counted) / 2
            for i in range(len(found)):
                _mark(figure, x + i * (_DOT + _GAP) + _DOT / 2, y, color, filled=i < count)
            if found and counted:
                said = f"{count}/{len(found)}"
                figures.inch_text(figure, x + len(found) * (_DOT + _GAP) + 0.02, y, said, 7.0, color=color, va="center")


def row_keys(own: Sequence[Data]) -> list[tuple[float, bool]]:
    """Rate and clipping of each row: the highest rate first, without clipping before with it."""
    return sorted({(run["learning_rate"], run["clipped"]) for run in own}, key=lambda key: (-key[0], key[1]))


def _mark(figure: Figure, x: float, y: float, color: str, *, filled: bool) -> None:
    face = color if filled else "none"
    dot = Circle((x, y), _DOT / 2, facecolor=face, edgecolor=color, linewidth=0.7, transform=figure.dpi_scale_trans)
    figure.add_artist(dot)
