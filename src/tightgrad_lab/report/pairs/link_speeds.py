"""Compression in distributed training: the step against the speed of the link."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from tightgrad_lab.report import units
from tightgrad_lab.report.claims.words import formatted
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.drawing.callouts import spread_out
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.compression import LinkPoint, LinkSpeedsFigure, LinkSpeedsRow

NAME = "link_speeds"
Result = ResultOf[LinkSpeedsFigure, LinkSpeedsRow]
ALONE, DENSE = "no communication", "dense"
PLANS = {
    ALONE: "link_speeds.figure.alone",
    DENSE: "link_speeds.figure.dense",
    "cast bfloat16": "link_speeds.figure.bfloat16",
    "8-bit blocks": "link_speeds.figure.int8",
    "4-bit blocks": "link_speeds.figure.int4",
    "sign": "link_speeds.figure.sign",
    "powersgd rank 4": "link_speeds.figure.powersgd",
    "powersgd rank 8, 8-bit": "link_speeds.figure.powersgd_8",
    "topk 1 %": "link_speeds.figure.topk_1",
    "topk 0.1 %": "link_speeds.figure.topk_01",
}
"""The methods as the bench names them, and the keys of their names."""
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
Point = LinkPoint


def name(plan: str, texts: Texts) -> str:
    """What the page calls a method."""
    return texts(PLANS[plan])


def rate_text(bits_per_second: float) -> str:
    """Bits per second with a decimal prefix."""
    for prefix, size in (("G", 1e9), ("M", 1e6)):
        if bits_per_second >= size:
            return f"{bits_per_second / size:.3g}{units.NBSP}{prefix}bit/s"
    return f"{bits_per_second / 1e3:.3g}{units.NBSP}kbit/s"


def _series(result: Result, ranks: int) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in result.figure["points"]:
        if point["ranks"] == ranks:
            found.setdefault(point["plan"], []).append(point)
    return {plan: sorted(points, key=lambda p: p["bits_per_second"]) for plan, points in found.items()}


def _all_ranks(result: Result) -> list[int]:
    return sorted({int(point["ranks"]) for point in result.figure["points"]})


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """A panel for each number of ranks: link speed to the right, seconds of a step upwards, both log. Names stand where
    the lines begin: at the slow end they are apart.
    """
    narrow = layout is NARROW
    panels = _all_ranks(result)
    right, bottom, head, panel, gap = 0.62, 0.62, 0.5, 2.5, 0.62
    left = 1.42 if narrow else 1.7
    height = head + len(panels) * panel + (len(panels) - 1) * gap + bottom
    figure = figures.canvas(layout.width, height)
    width = layout.width - left - right
    for place, ranks in enumerate(panels):
        low = height - head - (place + 1) * panel - place * gap
        axes = figures.inch_axes(figure, left, low, width, panel)
        series = _series(result, ranks)
        _scales(axes, result, narrow)
        _lines(figure, axes, series, texts, (left - 0.25, low, low + panel))
        heading = texts("link_speeds.figure.panel", ranks=ranks)
        figures.inch_text(figure, left, low + panel + 0.12, heading, figures.SIZE_LABEL, va="center")
    figures.inch_text(
        figure,
        layout.width - 0.1,
        height - 0.14,
        texts("link_speeds.figure.y"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        ha="right",
        va="center",
    )
    middle = left + width / 2
    figures.inch_text(
        figure,
        middle,
        0.16,
        texts("link_speeds.figure.x"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        ha="center",
        va="center",
    )
    return figure


def _scales(axes: Axes, result: Result, narrow: bool) -> None:
    points = result.figure["points"]
    seconds = [point["step_seconds"] for point in points]
    speeds = sorted({point["bits_per_second"] for point in points})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(speeds[0] / 1.3, speeds[-1] * 1.3)
    low, high = min(seconds) / 1.4, max(seconds) * 1.4
    axes.set_ylim(low, high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticklabels([units.seconds_text(tick) for tick in ticks])
    decades = [10.0**power for power in range(6, 13) if speeds[0] / 1.3 <= 10.0**power <= speeds[-1] * 1.3]
    axes.xaxis.set_major_locator(FixedLocator(decades))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([rate_text(decade).replace("bit/s", "" if narrow else "bit/s") for decade in decades])
    axes.grid(True, axis="y", zorder=0)
    axes.tick_params(length=0, pad=5)
    axes.yaxis.tick_right()
    axes.tick_params(length=0, pad=5)
    axes.spines["left"].set_visible(False)


def _lines(
    figure: Figure,
    axes: Axes,
    series: Mapping[str, list[Point]],
    texts: Texts,
    column: tuple[float, float, float],
) -> None:
    x, low, high = column
    plans = [plan for plan in PLANS if plan in series]
    ends = []
    for plan in plans:
        points = series[plan]
        xs, ys = [p["bits_per_second"] for p in points], [p["step_seconds"] for p in points]
        color, style = _look(plan)
        axes.plot(xs, ys, color=color, linewidth=1.6 if plan == DENSE else 1.1, linestyle=style, zorder=2)
        for point in points:
            face = color if point["is_limited"] else figures.PAPER
            axes.plot(
                [point["bits_per_second"]],
                [point["step_seconds"]],
                "o",
                color=color,
                markerfacecolor=face,
                markersize=3.4,
                zorder=3,
                clip_on=False,
            )
        ends.append(axes.transData.transform((xs[0], ys[0])) / figure.dpi)
    order = sorted(range(len(plans)), key=lambda i: float(ends[i][1]))
    middles = spread_out([float(ends[i][1]) for i in order], [0.15] * len(order), low, high)
    for i, middle in zip(order, middles, strict=True):
        color, _ = _look(plans[i])
        figures.inch_line(
            figure,
            (float(ends[i][0]) - 0.05, x + 0.03),
            (float(ends[i][1]), middle),
            color=figures.LINK,
            linewidth=0.8,
            linestyle=(0, (1, 2)),
        )
        figures.inch_text(
            figure, x, middle, name(plans[i], texts), figures.SIZE_SMALL, color=color, ha="right", va="center"
        )


def _look(plan: str) -> tuple[str, Any]:
    if plan == ALONE:
        return figures.MUTED, (0, (3, 2))
    return (figures.INK, "-") if plan == DENSE else (figures.COLORS["compress"], "-")


def _finding(row: LinkSpeedsRow, texts: Texts) -> str:
    key = "link_speeds.figure.pays" if row["pays"] else "link_speeds.figure.pays_not"
    return texts(
        key,
        rate=rate_text(row["bits_per_second"]),
        ranks=row["ranks"],
        best=name(row["best"], texts),
        gain=units.factor_text(row["gain"]),
        dense=units.seconds_text(row["dense_seconds"]),
        seconds=units.seconds_text(row["best_seconds"]),
    )


def _shows(result: Result, texts: Texts) -> str:
    """Whether compression saves the more time the slower the link, for every number of ranks."""
    by_speed = [sorted(rows, key=lambda row: row["bits_per_second"]) for rows in _rows_by_ranks(result)]
    falls = all(slower["gain"] > faster["gain"] for rows in by_speed for slower, faster in pairwise(rows))
    paying = sum(bool(row["pays"]) for row in result.table)
    slow = min((rows[0] for rows in by_speed), key=lambda row: row["bits_per_second"])
    fast = max((rows[-1] for rows in by_speed), key=lambda row: row["bits_per_second"])
    if slow["bits_per_second"] == fast["bits_per_second"]:
        return ""
    return texts(
        f"link_speeds.figure.shows.{'never' if not paying else 'slower' if falls else 'mixed'}",
        paying=paying,
        count=len(result.table),
        slow=rate_text(slow["bits_per_second"]),
        most=formatted(slow["gain"], "factor", texts),
        fast=rate_text(fast["bits_per_second"]),
        least=formatted(fast["gain"], "factor", texts),
    )


def figure(result: Result, texts: Texts) -> FigureSpec:
    """The step against the link."""
    free = sorted({p["bits_per_second"] for p in result.figure["points"] if not p["is_limited"]})
    said: list[str | Markup] = [
        texts(
            "link_speeds.figure.caption",
            parameters=units.count_text(result.figure["num_parameters"]),
            batch=result.figure["work"]["batch_size"],
            steps=result.settings["steps"],
        )
    ]
    if free:
        said.append(texts("link_speeds.figure.unlimited", rates=texts.join([rate_text(speed) for speed in free])))
    slowest = [min(rows, key=lambda row: row["bits_per_second"]) for rows in _rows_by_ranks(result)]
    said += [_finding(row, texts) for row in slowest]
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.link_speeds.figure"),
        alt=texts("link_speeds.figure.alt", findings=" ".join(_finding(row, texts) for row in result.table)),
        caption=said,
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
        shows=_shows(result, texts),
    )


def _rows_by_ranks(result: Result) -> list[list[LinkSpeedsRow]]:
    return [[row for row in result.table if row["ranks"] == ranks] for ranks in _all_ranks(result)]


def table(result: Result, texts: Texts) -> Table:
    """A row for each number of ranks and speed."""
    columns = [
        Column("ranks", texts("link_speeds.column.ranks")),
        Column("bits_per_second", texts("link_speeds.column.rate"), "bit/s"),
        Column("best", texts("link_speeds.column.best"), numeric=False),
        Column("gain", texts("link_speeds.column.gain")),
        Column("pays", texts("link_speeds.column.pays"), numeric=False),
        Column("no_communication_seconds", texts("link_speeds.column.alone"), "s"),
        Column("dense_seconds", texts("link_speeds.column.dense"), "s"),
        Column("best_seconds", texts("link_speeds.column.seconds"), "s"),
        Column("dense_wire_bytes", texts("link_speeds.column.dense_bytes"), "B"),
        Column("best_wire_bytes", texts("link_speeds.column.bytes"), "B"),
    ]
    rows = []
    for row in sorted(result.table, key=lambda each: (each["ranks"], each["bits_per_second"])):
        speed = rate_text(row["bits_per_second"])
        rows.append(
            [
                Cell(row["ranks"], str(row["ranks"])),
                Cell(
                    row["bits_per_second"],
                    speed if row["is_limited"] else texts("link_speeds.table.unlimited", rate=speed),
                ),
                Cell(row["best"], name(row["best"], texts)),
                Cell(row["gain"], units.factor_text(row["gain"])),
                Cell(row["pays"], texts("link_speeds.table.pays" if row["pays"] else "link_speeds.table.pays_not")),
                *(
                    Cell(row[key], units.seconds_text(row[key]))
                    for key in ("no_communication_seconds", "dense_seconds", "best_seconds")
                ),
                *(Cell(row[key], units.bytes_text(row[key])) for key in ("dense_wire_bytes", "best_wire_bytes")),
            ]
        )
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.link_speeds.table"),
        caption=[texts("link_speeds.table.caption")],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[texts("link_speeds.table.loss"), *notes(result, texts)],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=3, content=content)
