"""The upper panels of figure 11: each method without feedback and with it, joined, by momentum."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.model import NARROW, Layout
from tightgrad_lab.report.texts import Texts

Row = Mapping[str, Any]
REACH = 0.08
"""What lies further below dense than this is written beside the edge."""
MARKS: dict[str, dict[str, Any]] = {
    "none": {"marker": "o", "color": figures.MUTED, "markerfacecolor": figures.PAPER},
    "error_feedback": {"marker": "o", "color": figures.COLORS["compress"]},
    "momentum_correction": {"marker": "D", "color": figures.COLORS["clip"]},
}
"""How each feedback is drawn."""


def draw(figure: Figure, rows: Sequence[Row], names: Mapping[str, str], texts: Texts, layout: Layout) -> None:
    """Above what is drawn: each method without feedback and with it, joined, without momentum and with it."""
    narrow = layout is NARROW
    factors = {row["method"]: float(row["factor"]) for row in rows if row["method"] != "dense"}
    methods = sorted(factors.items(), key=lambda item: item[1])
    momenta = sorted({row["momentum"] for row in rows})
    left, gap, line, head = (1.25, 0.3, 0.21, 0.5) if narrow else (1.75, 0.35, 0.21, 0.5)
    tall = line * (len(methods) + 1)
    across = 1 if narrow else len(momenta)
    room = 0.62 + (len(momenta) if narrow else 1) * (head + tall + 0.32) + 0.3
    figures.with_room_above(figure, room)
    top = figure.get_figheight()
    width = (layout.width - left - 0.2 - (across - 1) * gap) / across
    every = [value for row in rows for value in row["accuracy"]]
    dense_rows = [fmean(row["accuracy"]) for row in rows if row["method"] == "dense"]
    low, high = max(min(every), min(dense_rows) - REACH) - 0.01, max(every) + 0.01
    for place, momentum in enumerate(momenta):
        column, row_of = (0, place) if narrow else (place, 0)
        x = left + column * (width + gap)
        y = top - 0.62 - row_of * (head + tall + 0.32) - head - tall
        axes = figures.inch_axes(figure, x, y, width, tall)
        own = [row for row in rows if row["momentum"] == momentum]
        dense = fmean(next(row for row in own if row["method"] == "dense")["accuracy"])
        axes.axvline(dense, color=figures.MUTED, linewidth=1.0, linestyle=(0, (3, 2)))
        for level, (method, factor) in enumerate(methods):
            found = {row["feedback"]: fmean(row["accuracy"]) for row in own if row["method"] == method}
            axes.plot(list(found.values()), [level] * len(found), color=figures.LINK, linewidth=1.2, zorder=1)
            for feedback, value in found.items():
                if value >= low:
                    axes.plot([value], [level], **MARKS[feedback], markersize=5.5, zorder=3)
                    continue
                said = f"← {units.percent_text(value)}"
                color = MARKS[feedback]["color"]
                axes.annotate(said, (low, level + 0.12), fontsize=7.5, color=color, va="bottom", annotation_clip=False)
            if column == 0:
                at = y + tall * (level + 1) / (len(methods) + 1)
                name = names[method] if narrow else f"{names[method]}  {units.factor_text(factor)}"
                figures.inch_text(figure, 0.1, at, name, figures.SIZE_SMALL, va="center")
        axes.set_ylim(-1, len(methods))
        axes.set_xlim(low, high)
        axes.set_yticks([])
        percents = MaxNLocator(4, integer=True, min_n_ticks=2).tick_values(100 * low, 100 * high)
        ticks = [float(percent) / 100 for percent in percents]
        axes.set_xticks([tick for tick in ticks if low <= tick <= high])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=f"{units.NBSP}%", decimals=0))
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=4)
        heading = texts("accuracy_vs_bytes.figure.momentum", momentum=f"{momentum:g}", dense=units.percent_text(dense))
        figures.inch_text(figure, x, y + tall + 0.14, heading, figures.SIZE_SMALL, va="center")
    figures.inch_text(figure, 0.1, top - 0.18, texts("accuracy_vs_bytes.figure.a"), figures.SIZE_SMALL, va="center")
    x = 0.15
    for feedback, mark in MARKS.items():
        name = names[feedback]
        figures.inch_line(figure, [x], [top - 0.44], **mark, markersize=5.5, linestyle="none")
        figures.inch_text(figure, x + 0.1, top - 0.44, name, figures.SIZE_SMALL, va="center")
        x += 0.1 + figures.text_size(figure, name, figures.SIZE_SMALL)[0] + 0.22
    said = texts("accuracy_vs_bytes.figure.b")
    figures.inch_text(figure, 0.1, top - room + 0.12, said, figures.SIZE_SMALL, va="center", gid=figures.PART)


HARM = -0.01
"""A change of the accuracy, as a fraction, from which on feedback is said to harm a method."""


def shows(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], texts: Texts) -> str:
    """What a student should take away from this machine's figure; empty for the general sentence."""
    found = {(row["method"], row["momentum"], row["feedback"]): row for row in rows if row["accuracy"]}
    gains = {
        (method, momentum): fmean(row["accuracy"]) - fmean(found[method, momentum, "none"]["accuracy"])
        for (method, momentum, feedback), row in found.items()
        if feedback == "error_feedback" and (method, momentum, "none") in found
    }
    if not gains or max(gains.values()) <= -HARM:
        return ""
    best, worst = max(gains, key=lambda key: gains[key]), min(gains, key=lambda key: gains[key])
    return texts(
        f"accuracy_vs_bytes.figure.shows.{'harms' if gains[worst] <= HARM else 'helps'}",
        most=units.points_text(gains[best]),
        method=texts(names[best[0]]),
        momentum=f"{best[1]:g}",
        least=units.points_text(gains[worst]),
        other=texts(names[worst[0]]),
        other_momentum=f"{worst[1]:g}",
    )
