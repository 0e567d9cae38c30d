"""Figure 13: combinations on the plane of bytes, quality and memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import callouts, figures
from tightgrad_lab.report.drawing.callouts import Box
from tightgrad_lab.report.measured.stats import Spread, share_noise
from tightgrad_lab.report.model import Layout
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import TECHNIQUES

_MAX_RADIUS = 0.15
_SPOT = 0.04
_GAP = 0.07


@dataclass(frozen=True, slots=True)
class Point:
    """One combination; `quality` is a fraction if `share`, else in the metric's own unit."""

    combination: str
    wire_bytes: float
    quality: Spread
    memory_bytes: float


def _plain(value: float, _position: float) -> str:
    return units.number_text(value)


def _ticks(low: float, high: float, count: int) -> list[float]:
    candidates = [step * 1024**power for power in range(5) for step in (1, 2, 5, 10, 20, 50, 100, 200, 500)]
    inside = [value for value in candidates if low <= value <= high]
    stride = max(1, math.ceil(len(inside) / count))
    return inside[::stride]


def _label(texts: Texts, point: Point, layout: Layout) -> str:
    name = texts.combination(point.combination)
    if layout.name == "narrow" and texts.language == "en" and name.count("+") == 2:
        head, _, tail = name.rpartition(" + ")
        return f"{head}\n+ {tail}"
    return name if layout.name == "narrow" else f"{name}\n{units.bytes_text(point.memory_bytes)}"


def _legend(figure: Figure, texts: Texts, layout: Layout, top: float) -> None:
    x, y = 0.1, top - 0.17
    for technique in TECHNIQUES:
        figures.dot(figure, x + 0.085, y, 0.085, technique)
        label = texts(f"technique.{technique}")
        figures.inch_text(figure, x + 0.24, y, label, va="center")
        x += 0.24 + figures.text_size(figure, label, figures.SIZE_LABEL)[0] + 0.26
    note = texts("combinations.figure.area")
    if layout.name == "wide":
        figures.inch_text(figure, layout.width - 0.1, y, note, color=figures.MUTED, va="center", ha="right")
    else:
        figures.inch_text(figure, 0.1, y - 0.26, note, figures.SIZE_SMALL, color=figures.MUTED, va="center")


def _limits(points: Sequence[Point], band: tuple[float, float] | None, share: bool) -> tuple[float, float]:
    low = min(point.quality.low for point in points)
    high = max(point.quality.high for point in points)
    if band:
        low, high = min(low, band[0]), max(high, band[1])
    least = 0.02 if share else 0.02 * max(abs(high), 1e-9)
    reach = max(high - low, least)
    middle = (high + low) / 2
    return middle - 0.66 * reach, middle + 0.66 * reach


def draw(points: Sequence[Point], metric: str, samples: int | None, seeds: int, texts: Texts, layout: Layout) -> Figure:
    """The plane; the band is the sampling error around "none" and is drawn for a single seed only."""
    height = 4.9 if layout.name == "wide" else 5.2
    figure = figures.canvas(layout.width, height)
    share = all(0 <= point.quality.mean <= 1 for point in points)
    left, bottom, right = 0.62, 0.58, 0.3
    head = 0.66 if layout.name == "wide" else 0.88
    size = (layout.width - left - right, height - bottom - head)
    axes = figures.inch_axes(figure, left, bottom, *size)

    base = next((point.quality.mean for point in points if point.combination == "none"), None)
    band = None
    if seeds == 1 and base is not None and samples and share:
        noise = share_noise(base, base, samples)
        band = (base - noise, base + noise)
        axes.axhspan(*band, facecolor=figures.BAND, edgecolor="none", zorder=0)
    axes.set_ylim(*_limits(points, band, share))

    byte_counts = [point.wire_bytes for point in points]
    logarithmic = min(byte_counts) > 0
    if logarithmic:
        axes.set_xscale("log")
        stretch = max(1.6, (max(byte_counts) / min(byte_counts)) ** 0.2)
        axes.set_xlim(min(byte_counts) / stretch, max(byte_counts) * stretch)
        ticks = _ticks(*axes.get_xlim(), count=7 if layout.name == "wide" else 4)
    else:
        reach = max(max(byte_counts), 1.0)
        axes.set_xlim(-0.2 * reach, 1.2 * reach)
        ticks = [0.0, reach / 2, reach]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([units.bytes_tick(tick) for tick in ticks])
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=f"{units.NBSP}%") if share else _plain)
    axes.grid(True, axis="y", zorder=0)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.set_xlabel(
        texts("combinations.figure.x" if logarithmic else "combinations.figure.x.linear"),
        labelpad=7,
        fontsize=figures.SIZE_SMALL,
    )
    title_y = height - head + 0.16
    metric_text = texts("combinations.figure.y", metric=texts.metric(metric))
    figures.inch_text(figure, 0.1, title_y, metric_text, figures.SIZE_SMALL, color=figures.MUTED, va="center")
    _legend(figure, texts, layout, height)
    _draw_points(figure, points, texts, layout, (left, bottom, left + size[0], bottom + size[1]))
    return figure


def _draw_points(figure: Figure, points: Sequence[Point], texts: Texts, layout: Layout, frame: Box) -> None:
    """A spot for each value, and beside it a disc for memory and techniques with the name."""
    axes = figure.axes[0]
    spots: list[tuple[float, float]] = []
    for point in points:
        x, y = axes.transData.transform((point.wire_bytes, point.quality.mean)) / figure.dpi
        spots.append((float(x), float(y)))
        if point.quality.sd is not None:
            line = [point.quality.low, point.quality.high]
            axes.plot([point.wire_bytes] * 2, line, color=figures.MUTED, linewidth=1.1, zorder=1)
    most = max(point.memory_bytes for point in points) or 1.0
    radii = [max(0.05, _MAX_RADIUS * math.sqrt(point.memory_bytes / most)) for point in points]
    labels = [_label(texts, point, layout) for point in points]
    sizes = []
    for label, radius in zip(labels, radii, strict=True):
        width, height = figures.text_size(figure, label, figures.SIZE_SMALL)
        sizes.append((2 * _MAX_RADIUS + _GAP + width, max(2 * radius, height)))
    for i, place in enumerate(callouts.place(spots, sizes, frame)):
        toward = 1 if place.right else -1
        middle = place.x + toward * _MAX_RADIUS
        figures.inch_line(
            figure,
            (spots[i][0], place.x, middle),
            (spots[i][1], place.y, place.y),
            color=figures.MUTED,
            linewidth=0.6,
            zorder=2,
        )
        spot = Circle(spots[i], _SPOT, facecolor=figures.INK, edgecolor=figures.PAPER, linewidth=0.5, zorder=4)
        spot.set_transform(figure.dpi_scale_trans)
        figure.add_artist(spot)
        figures.dot(figure, middle, place.y, radii[i], points[i].combination)
        figures.inch_text(
            figure,
            place.x + toward * (2 * _MAX_RADIUS + _GAP),
            place.y,
            labels[i],
            figures.SIZE_SMALL,
            ha="left" if place.right else "right",
            va="center",
            linespacing=1.25,
            zorder=6,
        )
