"""Training curves as small multiples: one panel per combination, the others faint behind it."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.model import Layout
from tightgrad_lab.report.texts import Texts

Curve = Sequence[tuple[float, float]]


def _mean(curves: Sequence[Curve]) -> Curve:
    by_epoch: dict[float, list[float]] = {}
    for curve in curves:
        for epoch, value in curve:
            by_epoch.setdefault(epoch, []).append(value)
    return [(epoch, fmean(values)) for epoch, values in sorted(by_epoch.items())]


def _heading(figure: Figure, name: str, width: float) -> str:
    if figures.text_size(figure, name, figures.SIZE_SMALL)[0] <= width:
        return name
    head, _, tail = name.rpartition(" + ")
    return f"{head}\n+ {tail}"


def draw(curves: Mapping[str, Sequence[Curve]], metric: str, texts: Texts, layout: Layout, *, share: bool) -> Figure:
    """`curves` holds, for each combination, one curve of (epoch, value) per seed; `share`: values are fractions."""
    columns = 4 if layout.name == "wide" else 2
    rows = math.ceil(len(curves) / columns)
    left, right, top, bottom = 0.52, 0.14, 0.24, 0.52
    gap_x, head, panel = 0.22, 0.48, 0.95
    height = top + rows * (head + panel) + bottom
    width = (layout.width - left - right - (columns - 1) * gap_x) / columns
    figure = figures.canvas(layout.width, height)
    means = {name: _mean(found) for name, found in curves.items()}
    values = [value for curve in means.values() for _, value in curve]
    low, high = min(values), max(values)
    room = 0.08 * ((high - low) or 1.0)
    last_epoch = max(epoch for curve in means.values() for epoch, _ in curve)
    for place, (name, found) in enumerate(curves.items()):
        row, column = divmod(place, columns)
        x = left + column * (width + gap_x)
        y = height - top - (row + 1) * (head + panel)
        axes = figures.inch_axes(figure, x, y, width, panel)
        axes.set_ylim(low - room, high + room)
        axes.set_xlim(1, max(2.0, last_epoch + 1))
        for other, curve in means.items():
            if other != name:
                axes.plot(
                    [e + 1 for e, _ in curve], [v for _, v in curve], color=figures.FAINT, linewidth=0.8, zorder=1
                )
        if len(found) > 1:
            for curve in found:
                axes.plot(
                    [e + 1 for e, _ in curve], [v for _, v in curve], color=figures.MUTED, linewidth=0.5, zorder=2
                )
        own = means[name]
        axes.plot([e + 1 for e, _ in own], [v for _, v in own], color=figures.INK, linewidth=1.7, zorder=3)
        axes.plot([own[-1][0] + 1], [own[-1][1]], "o", color=figures.INK, markersize=3.2, zorder=4, clip_on=False)
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=4)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.3g}{units.NBSP}%" if share else f"{value:g}")
        axes.tick_params(labelleft=column == 0, labelbottom=place + columns >= len(curves))
        heading = _heading(figure, texts.combination(name), width - 0.28)
        figures.dot(figure, x + 0.07, y + panel + 0.2, 0.07, name)
        final = units.percent_text(own[-1][1]) if share else units.number_text(own[-1][1])
        figures.inch_text(figure, x + 0.2, y + panel + 0.2, heading, figures.SIZE_SMALL, va="center")
        level = y + (0.12 if own[-1][1] > (low + high) / 2 else panel - 0.12)
        style = {"ha": "right", "va": "center", "zorder": 5, "bbox": {"fc": figures.PAPER, "ec": "none", "pad": 1}}
        figures.inch_text(figure, x + width, level, final, figures.SIZE_SMALL, color=figures.INK, **style)
    legend = texts("combinations.figure.y", metric=texts.metric(metric))
    figures.inch_text(figure, 0.1, height - 0.16, legend, figures.SIZE_SMALL, color=figures.MUTED, va="center")
    figures.inch_text(
        figure,
        layout.width / 2,
        0.15,
        texts("curves.x"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        ha="center",
        va="center",
    )
    return figure
