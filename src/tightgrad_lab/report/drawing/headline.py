"""The figure of `tightgrad bench headline`: bits per byte against the time that the steps take over the slow links."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.model import WIDE

HEIGHT = 3.1
TICKS = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36_000: "10 h"}
LOOKS = {"dense": "ink", "compressed": "compress"}


def draw(found: Mapping[str, Any]) -> Figure:
    """Thin lines for seeds, a thick one for their mean.

    Args:
        found: the JSON object that the bench printed.
    """
    with figures.style():
        figure = figures.canvas(WIDE.width, HEIGHT)
        axes = figures.inch_axes(figure, 0.55, 0.6, WIDE.width - 1.9, HEIGHT - 1.0)
        seconds = {timing["plan"]: timing["step_seconds"] for timing in found["timings"]}
        for name, color in LOOKS.items():
            _curves(axes, [c["curve"] for c in found["curves"] if c["plan"] == name], seconds[name], color)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [tick for tick in TICKS if low <= tick <= high]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([TICKS[tick] for tick in ticks])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=5)
        for name, color in LOOKS.items():
            _name(figure, axes, name, [c["curve"] for c in found["curves"] if c["plan"] == name], seconds[name], color)
        _words(figure, found)
    return figure


def _curves(axes: Axes, curves: list[list[list[float]]], seconds: float, color: str) -> None:
    for curve in curves:
        axes.plot(
            [step * seconds for step, _ in curve], [bits for _, bits in curve], color=figures.COLORS[color], lw=0.6
        )
    mean = _mean(curves)
    axes.plot([step * seconds for step, _ in mean], [bits for _, bits in mean], color=figures.COLORS[color], lw=1.8)


def _mean(curves: list[list[list[float]]]) -> list[tuple[float, float]]:
    return [(column[0][0], sum(bits for _, bits in column) / len(column)) for column in zip(*curves, strict=True)]


def _name(figure: Figure, axes: Axes, name: str, curves: list[list[list[float]]], seconds: float, color: str) -> None:
    step, bits = _mean(curves)[-1]
    x, y = axes.transData.transform((step * seconds, bits)) / figure.dpi
    text = f"{name}\n{bits:.3f}"
    color = figures.COLORS[color]
    figures.inch_text(figure, float(x) + 0.08, float(y), text, figures.SIZE_SMALL, color=color, va="bottom")


def _words(figure: Figure, found: Mapping[str, Any]) -> None:
    settings, about = found["settings"], found["summary"]
    rate = settings["rate_bits_per_second"] / 1e6
    title = (
        f"{settings['ranks']} ranks at {rate:g} Mbit/s, {settings['steps']} steps: "
        f"{units.factor_text(about['speedup'])} less time"
    )
    figures.inch_text(figure, 0.1, HEIGHT - 0.16, title, figures.SIZE_LABEL, va="center")
    under = f"bits per byte on held-out text, {settings['seeds']} seeds, against time over these links (log scale)"
    figures.inch_text(figure, 0.1, 0.16, under, figures.SIZE_SMALL, color=figures.MUTED, va="center")
