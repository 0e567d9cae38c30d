"""Accumulation in large-model training: memory against the micro-batch, and the wrappers."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.claims.words import formatted
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.accumulation import AccumulationMemoryFigure, AccumulationMemoryRow, MemoryPoint

Result = ResultOf[AccumulationMemoryFigure, AccumulationMemoryRow]

NAME = "accumulation_memory"
WRAPPERS = {
    "single": "accumulation_memory.table.single",
    "ddp": "accumulation_memory.table.ddp",
    "fsdp2 last": "accumulation_memory.table.fsdp2_last",
    "fsdp2 every": "accumulation_memory.table.fsdp2_every",
}
"""The wrappers, and the keys of their names."""
Point = MemoryPoint
_MIB = 2**20


def _peak(point: Point) -> float:
    return float(median(point["peak_memory_bytes"]))


def _points(result: Result) -> list[Point]:
    return sorted(result.figure["points"], key=lambda point: int(point["micro_batch"]))


def _axes(figure: Figure, box: tuple[float, float, float, float], sizes: Sequence[int]) -> Axes:
    axes = figures.inch_axes(figure, *box)
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] * 0.8, sizes[-1] * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(list(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y")
    axes.tick_params(length=0)
    return axes


def _lines(axes: Axes, sizes: Sequence[int], values: Sequence[tuple[float, float, float]], color: str) -> None:
    """Low, middle and high of each size."""
    lows = [middle - low for low, middle, _ in values]
    highs = [high - middle for _, middle, high in values]
    middles = [middle for _, middle, _ in values]
    axes.errorbar(
        sizes, middles, (lows, highs), color=color, marker="o", markersize=4, linewidth=1.4, elinewidth=0.9, capsize=2.5
    )


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """Memory and time of a step against the micro-batch, one process."""
    narrow = layout is NARROW
    points = _points(result)
    sizes = [int(point["micro_batch"]) for point in points]
    left, right, top, bottom, tall, gap = 0.55, 0.12, 0.45, 0.62, 1.9, 0.95
    width = layout.width - left - right if narrow else (layout.width - 2 * left - 2 * right) / 2
    height = top + tall + bottom + (tall + gap if narrow else 0)
    figure = figures.canvas(layout.width, height)
    memory = (left, bottom + (tall + gap if narrow else 0), width, tall)
    seconds = (left, bottom, width, tall) if narrow else (2 * left + right + width, bottom, width, tall)

    axes = _axes(figure, memory, sizes)
    peaks = [[value / _MIB for value in point["peak_memory_bytes"]] for point in points]
    spread = [(min(own), median(own), max(own)) for own in peaks]
    fixed = float(result.figure["fixed_bytes"]) / _MIB
    axes.axhline(fixed, color=figures.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    _lines(axes, sizes, spread, figures.COLORS["accumulate"])
    axes.set_ylim(0, 1.08 * max(high for _, _, high in spread))
    words, below = texts("accumulation_memory.figure.fixed"), fixed - 0.02 * axes.get_ylim()[1]
    axes.text(sizes[-1] * 1.2, below, words, fontsize=7.0, color=figures.MUTED, ha="right", va="top")
    _titles(figure, memory, texts("accumulation_memory.figure.memory"), texts("accumulation_memory.figure.x"))

    axes = _axes(figure, seconds, sizes)
    times = []
    for point in points:
        first, third = point["step_seconds_quartiles"]
        times.append((1e3 * first, 1e3 * point["step_seconds"], 1e3 * third))
    _lines(axes, sizes, times, figures.COLORS["accumulate"])
    axes.set_ylim(0, 1.08 * max(high for _, _, high in times))
    _titles(figure, seconds, texts("accumulation_memory.figure.seconds"), texts("accumulation_memory.figure.x"))
    return figure


def _titles(figure: Figure, box: tuple[float, float, float, float], title: str, below: str) -> None:
    left, bottom, width, tall = box
    figures.inch_text(figure, left, bottom + tall + 0.17, title, figures.SIZE_SMALL, va="center")
    style: dict[str, Any] = {"color": figures.MUTED, "ha": "center", "va": "center"}
    figures.inch_text(figure, left + width / 2, bottom - 0.42, below, figures.SIZE_SMALL, **style)


def figure(result: Result, texts: Texts) -> FigureSpec:
    """Peak memory at one effective batch."""
    points = _points(result)
    small, large = points[0], points[-1]
    fastest = min(points, key=lambda point: float(point["step_seconds"]))
    facts = {
        "effective": result.settings["effective_batch"],
        "parameters": units.count_text(result.figure["num_parameters"]),
        "seeds": result.settings["seeds"],
        "rounds": result.settings["rounds"],
        "fixed": units.bytes_text(result.figure["fixed_bytes"]),
    }
    ends = {
        "small": small["micro_batch"],
        "large": large["micro_batch"],
        "small_memory": units.bytes_text(_peak(small)),
        "large_memory": units.bytes_text(_peak(large)),
        "factor": units.factor_text(_peak(large) / _peak(small)),
        "time_factor": units.factor_text(float(small["step_seconds"]) / float(large["step_seconds"])),
        "fastest": fastest["micro_batch"],
    }
    in_words = [
        texts(
            "accumulation_memory.figure.point",
            size=point["micro_batch"],
            memory=units.bytes_text(_peak(point)),
            seconds=units.seconds_text(point["step_seconds"]),
        )
        for point in points
    ]
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.accumulation_memory.figure"),
        alt=texts("accumulation_memory.figure.alt", points=" ".join(in_words), **facts),
        caption=[
            texts("accumulation_memory.figure.caption", **facts),
            texts("accumulation_memory.figure.verdict", **ends),
        ],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
        shows=texts(
            "accumulation_memory.figure.shows",
            share=units.percent_text(_peak(small) / _peak(large)),
            time=formatted(float(small["step_seconds"]) / float(large["step_seconds"]), "factor", texts),
            **facts,
            **ends,
        ),
    )


def _verdict(result: Result, texts: Texts) -> list[str]:
    """What reducing after every micro-batch saves and costs under FSDP2, either way."""
    rows = {row["wrapper"]: row for row in result.table}
    if not {"fsdp2 last", "fsdp2 every"} <= rows.keys():
        return []
    last, every = rows["fsdp2 last"], rows["fsdp2 every"]
    facts = {
        "memory": units.factor_text(_peak(every) / _peak(last)),
        "bytes": units.factor_text(every["wire_bytes"] / last["wire_bytes"]),
        "seconds": units.factor_text(every["step_seconds"] / last["step_seconds"]),
    }
    return [texts("accumulation_memory.table.verdict", **facts)]


def _seconds(row: Point) -> Cell:
    first, third = row["step_seconds_quartiles"]
    half = (third - first) / 2
    return Cell(row["step_seconds"], units.seconds_text(row["step_seconds"]), half, units.seconds_text(half))


def table(result: Result, texts: Texts) -> Table:
    """A row for each wrapper."""
    columns = [
        Column("wrapper", texts("accumulation_memory.column.wrapper"), numeric=False),
        Column("ranks", texts("accumulation_memory.column.ranks")),
        Column("micro_batches", texts("accumulation_memory.column.micro_batches")),
        Column("peak_memory", texts("accumulation_memory.column.peak_memory"), "B"),
        Column("wire_bytes", texts("accumulation_memory.column.wire_bytes"), "B"),
        Column("step_seconds", texts("accumulation_memory.column.step_seconds"), "s"),
        Column("weights_difference", texts("accumulation_memory.column.weights_difference")),
    ]
    rows = []
    for row in result.table:
        peaks = {seed: float(peak) for seed, peak in enumerate(row["peak_memory_bytes"])}
        rows.append(
            [
                Cell(row["wrapper"], texts(WRAPPERS[row["wrapper"]])),
                Cell(row["ranks"], str(row["ranks"])),
                Cell(row["micro_batches"], str(row["micro_batches"])),
                cells.spread_cell(peaks, units.bytes_text),
                Cell(row["wire_bytes"], units.bytes_text(row["wire_bytes"])),
                _seconds(row),
                Cell(row["weights_difference"], units.short_text(row["weights_difference"])),
            ]
        )
    facts = {name: result.settings[name] for name in ("effective_batch", "compared", "seeds", "rounds")}
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.accumulation_memory.table"),
        caption=[texts("accumulation_memory.table.caption", **facts), *_verdict(result, texts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[texts("accumulation_memory.table.note"), *notes(result, texts)],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=2, content=content)
