"""One window on a time line, and what accumulation costs as micro-batches get smaller."""

import statistics
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.accumulation import WindowEvent, WindowTimelineFigure, WindowTimelineRow

Result = ResultOf[WindowTimelineFigure, WindowTimelineRow]

NAME = "window_timeline"
KINDS = {
    "forward": ("window_timeline.figure.forward", figures.LINK),
    "backward": ("window_timeline.figure.backward", figures.COLORS["accumulate"]),
    "sync": ("window_timeline.figure.sync", figures.COLORS["compress"]),
    "step": ("window_timeline.figure.step", figures.COLORS["clip"]),
}
"""What happens in a window, in the order of the legend: the key of its name, and its colour."""
_BAR, _SYNC_BAR = 0.5, 0.22


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """A row for each rank: forward and backward of every micro-batch with its weight, the sync below, the step."""
    narrow = layout is NARROW
    ranks = int(result.figure["ranks"])
    left, right, top, bottom = (0.62, 0.2, 0.72, 0.5) if narrow else (0.8, 0.15, 0.5, 0.5)
    height = top + bottom + 0.95 * ranks
    figure = figures.canvas(layout.width, height)
    axes = figures.inch_axes(figure, left, bottom, layout.width - left - right, 0.95 * ranks)
    for event in result.figure["events"]:
        _draw_event(axes, event, ranks)
    axes.set_ylim(-0.55, ranks - 0.35)
    end = max(event["end"] for event in result.figure["events"])
    axes.set_xlim(0, 1.04e3 * end)
    axes.set_yticks(
        [ranks - 1 - rank for rank in range(ranks)],
        [texts("window_timeline.figure.rank", rank=rank) for rank in range(ranks)],
    )
    ticks = MaxNLocator(4 if narrow else 7).tick_values(0, 1e3 * end)
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= 1e3 * end])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(texts("window_timeline.figure.x"))
    _legend(figure, texts, layout, left, height, 2 if narrow else len(KINDS))
    return figure


def _draw_event(axes: Any, event: WindowEvent, ranks: int) -> None:
    row = ranks - 1 - int(event["rank"])
    begin, seconds = 1e3 * event["begin"], 1e3 * (event["end"] - event["begin"])
    is_sync = event["kind"] == "sync"
    bottom = row - 0.42 if is_sync else row - 0.1
    axes.broken_barh(
        [(begin, seconds)],
        (bottom, _SYNC_BAR if is_sync else _BAR),
        facecolors=KINDS[event["kind"]][1],
        edgecolors=figures.PAPER,
        linewidth=0.6,
    )
    if event["kind"] == "forward":
        axes.text(
            begin, row + 0.45, f"{event['weight']:g}", fontsize=figures.SIZE_SMALL, color=figures.INK, va="bottom"
        )


def _legend(figure: Figure, texts: Texts, layout: Layout, left: float, height: float, columns: int) -> None:
    step = (layout.width - left) / columns
    for place, (key, color) in enumerate(KINDS.values()):
        x, y = left + (place % columns) * step, height - 0.2 - 0.22 * (place // columns)
        figures.inch_line(figure, [x, x + 0.16], [y, y], color=color, linewidth=6)
        figures.inch_text(figure, x + 0.24, y, texts(key), figures.SIZE_SMALL, va="center")


def figure(result: Result, texts: Texts) -> FigureSpec:
    """The window of median duration, as run."""
    found = result.figure
    weights = {
        rank: ", ".join(
            f"{event['weight']:g}" for event in found["events"] if event["rank"] == rank and event["kind"] == "forward"
        )
        for rank in range(int(found["ranks"]))
    }
    facts = {
        "micro_batches": found["micro_batches"],
        "ranks": found["ranks"],
        "total": units.count_text(found["total_weight"]),
        "parameters": units.count_text(found["parameters"]),
        "windows": result.settings["windows"],
        "bytes": units.bytes_text(found["wire_bytes"]),
        "milliseconds": units.number_text(1e3 * max(event["end"] for event in found["events"])),
    }
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.window_timeline.figure"),
        alt=texts("window_timeline.figure.alt", weights="; ".join(weights.values()), **facts),
        caption=[texts("window_timeline.figure.caption", **facts)],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
    )


def _error(errors: list[float]) -> Cell:
    """Mean and range, all with the same digits: a coarser range may not contain its own mean."""
    mean, low, high = (units.short_text(value) for value in (statistics.mean(errors), min(errors), max(errors)))
    return Cell(statistics.mean(errors), f"{mean} ({low}–{high})")


def table(result: Result, texts: Texts) -> Table:
    """A row for each K, at the same samples a window."""
    columns = [
        Column("micro_batches", texts("window_timeline.column.micro_batches")),
        Column("samples", texts("window_timeline.column.samples")),
        Column("peak_memory", texts("window_timeline.column.peak_memory"), "B"),
        Column("seconds_per_sample", texts("window_timeline.column.seconds_per_sample"), "s"),
        Column("relative_error", texts("window_timeline.column.relative_error")),
        Column("relative_error_of_loop", texts("window_timeline.column.relative_error_of_loop")),
        Column("wire_bytes", texts("window_timeline.column.wire_bytes"), "B"),
        Column("wire_bytes_if_each_synced", texts("window_timeline.column.wire_bytes_if_each_synced"), "B"),
    ]
    rows = []
    for row in result.table:
        low, high = row["seconds_quartiles"]
        k = row["micro_batches"]
        rows.append(
            [
                Cell(k, texts("window_timeline.table.none") if k == 1 else f"K = {k}"),
                Cell(row["samples"], str(row["samples"])),
                Cell(row["peak_memory_bytes"], units.bytes_text(row["peak_memory_bytes"])),
                Cell(
                    row["seconds_per_sample"],
                    f"{1e3 * row['seconds_per_sample']:.2f} ({1e3 * low:.2f}–{1e3 * high:.2f}){units.NBSP}ms",
                ),
                _error(row["relative_error"]),
                _error(row["relative_error_of_loop"]),
                Cell(row["wire_bytes"], units.bytes_text(row["wire_bytes"])),
                Cell(row["wire_bytes_if_each_synced"], units.bytes_text(row["wire_bytes_if_each_synced"])),
            ]
        )
    facts = {
        "samples": result.settings["samples"],
        "ranks": result.settings["ranks"],
        "rounds": result.settings["rounds"],
        "seeds": result.settings["seeds"],
    }
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.window_timeline.table"),
        caption=[texts("window_timeline.table.caption", **facts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[texts("window_timeline.table.note"), *notes(result, texts)],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=2, content=content)
