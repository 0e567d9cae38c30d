"""The stages of a clipped step as they were run, and the same clipping in other frameworks."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.drawing import chart, figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.clipping import ClipLane, ClipStagesFigure

NAME = "clip_stages"
Result = ResultOf[ClipStagesFigure, Mapping[str, Any]]
LANES = {
    "below": "clip_stages.figure.below",
    "multiply": "clip_stages.figure.multiply",
    "fold": "clip_stages.figure.fold",
    "torch": "clip_stages.figure.torch",
}
"""The ways of a clipped step, and the keys of their names."""
STAGES = {
    "backward": "clip_stages.figure.stage.backward",
    "norm": "clip_stages.figure.stage.norm",
    "factor": "clip_stages.figure.stage.factor",
    "multiply": "clip_stages.figure.stage.multiply",
    "optimizer": "clip_stages.figure.stage.optimizer",
}
CLIPPING = ("norm", "factor", "multiply")
CANNOT = {
    ("PyTorch", "norm"): "clip_stages.table.cannot.torch.norm",
    ("PyTorch", "global_norm_torch"): "clip_stages.table.cannot.torch.global_norm",
    ("PyTorch", "global_norm_1"): "clip_stages.table.cannot.torch.global_norm_1",
    ("PyTorch", "value"): "clip_stages.table.cannot.torch.value",
    ("TensorFlow", "norm"): "clip_stages.table.cannot.tensorflow.norm",
    ("TensorFlow", "global_norm"): "clip_stages.table.cannot.tensorflow.global_norm",
    ("TensorFlow", "per_tensor_norm"): "clip_stages.table.cannot.tensorflow.per_tensor_norm",
    ("TensorFlow", "value"): "clip_stages.table.cannot.tensorflow.value",
    ("JAX/optax", "norm"): "clip_stages.table.cannot.optax.norm",
    ("JAX/optax", "global_norm"): "clip_stages.table.cannot.optax.global_norm",
    ("JAX/optax", "value"): "clip_stages.table.cannot.optax.value",
    ("JAX/optax", "block_rms"): "clip_stages.table.cannot.optax.block_rms",
    ("JAX/optax", "agc"): "clip_stages.table.cannot.optax.agc",
}
"""What each function cannot do; the keys."""
FLOW = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (2, 1), (1, 1)]
"""Column and row of each step of the flow, on a wide figure."""
NEGLIGIBLE = 2e-6
"""Seconds below which a stage did nothing."""
Lane = ClipLane


def clipping_seconds(lane: Lane) -> float:
    """What clipping adds: norm, factor and multiplication."""
    return sum(float(lane["seconds"][stage]) for stage in CLIPPING)


def step_seconds(lane: Lane) -> float:
    """Clipping and the optimizer; folding moves work from one to the other."""
    return clipping_seconds(lane) + float(lane["seconds"]["optimizer"])


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """The flow of a clipped step with the time of each stage, then what clipping takes in all, by way."""
    narrow = layout is NARROW
    columns = 2 if narrow else 4
    wide, tall, gap = (1.5, 0.62, 0.24) if narrow else (1.52, 0.62, 0.36)
    rows = 4 if narrow else 2
    bars = 0.62 + 0.24 * len(result.figure["lanes"])
    height = 0.15 + rows * (tall + 0.38) + bars
    figure = figures.canvas(layout.width, height)
    left = (layout.width - columns * wide - (columns - 1) * gap) / 2

    def place(column: int, row: int) -> tuple[float, float, float, float]:
        """Middle and size of a box."""
        x = left + column * (wide + gap) + wide / 2
        return x, height - 0.15 - tall / 2 - row * (tall + 0.38), wide, tall

    seconds = _lane(result, "multiply")["seconds"]
    times = {stage: units.seconds_text(float(seconds[stage])) for stage in STAGES}

    def box(key: str, column: int, row: int, below: str, color: str = "muted", *, question: bool = False) -> chart.Node:
        """Draw a step of the flow."""
        found = chart.Node(*place(column, row), (texts(key), below), color, question)
        chart.node(figure, found)
        return found

    spots = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2), (1, 3)] if narrow else FLOW
    backward = box("clip_stages.figure.stage.backward", *spots[0], times["backward"])
    unscale = box("clip_stages.figure.stage.unscale", *spots[1], texts("clip_stages.figure.only.fp16"))
    sync = box("clip_stages.figure.stage.sync", *spots[2], texts("clip_stages.figure.only.ranks"))
    norm = box("clip_stages.figure.stage.norm", *spots[3], times["norm"], "clip")
    ask = box("clip_stages.figure.stage.ask", *spots[4], times["factor"], "clip", question=True)
    scale = box("clip_stages.figure.stage.multiply", *spots[5], times["multiply"], "clip")
    step = box("clip_stages.figure.stage.optimizer", *spots[6], times["optimizer"])
    for begin, end in pairwise((backward, unscale, sync, norm, ask)):
        chart.arrow(figure, chart.between(begin, end))
    middle = ((ask.x + scale.x) / 2, ask.y + 0.11)
    chart.arrow(figure, chart.between(ask, scale), texts("clip_stages.figure.yes"), middle)
    chart.arrow(figure, chart.between(scale, step))
    low = step.side("left")[1] if narrow else ask.side("bottom")[1] - 0.16
    x, y = ask.side("bottom")
    around = [(x, y), (x, low), step.side("left")] if narrow else [(x, y), (x, low), (step.x, low), step.side("bottom")]
    chart.arrow(figure, around, texts("clip_stages.figure.no"), (x + 0.14, y - 0.1))
    _ways(figure, result, texts, bars)
    return figure


def _ways(figure: Figure, result: Result, texts: Texts, top: float) -> None:
    """Bars: what clipping takes in all, for each way."""
    lanes: list[Lane] = list(result.figure["lanes"])
    most = max(clipping_seconds(lane) for lane in lanes)
    names = [texts(LANES[lane["lane"]]) for lane in lanes]
    left = 0.3 + max(figures.text_size(figure, name, figures.SIZE_SMALL)[0] for name in names)
    room = figure.get_figwidth() - left - 0.9
    heading = texts("clip_stages.figure.ways")
    figures.inch_text(figure, 0.15, top - 0.2, heading, figures.SIZE_SMALL, color=figures.MUTED, va="center")
    for place, (lane, name) in enumerate(zip(lanes, names, strict=True)):
        y, seconds = top - 0.48 - 0.24 * place, clipping_seconds(lane)
        length = room * seconds / most
        figures.inch_text(figure, 0.15, y, name, figures.SIZE_SMALL, va="center")
        bar = Rectangle((left, y - 0.05), length, 0.1, facecolor=figures.COLORS["clip"], zorder=2)
        bar.set_transform(figure.dpi_scale_trans)
        figure.add_artist(bar)
        shown = units.seconds_text(seconds)
        figures.inch_text(figure, left + length + 0.08, y, shown, figures.SIZE_SMALL, va="center")


def _lane(result: Result, name: str) -> Lane:
    found: Lane = next(lane for lane in result.figure["lanes"] if lane["lane"] == name)
    return found


def _in_words(lane: Lane, texts: Texts) -> str:
    parts = [
        f"{texts(key)} {units.seconds_text(float(lane['seconds'][stage]))}"
        for stage, key in STAGES.items()
        if float(lane["seconds"][stage]) > NEGLIGIBLE
    ]
    return f"{texts(LANES[lane['lane']])}: {texts.join(parts)}"


def figure(result: Result, texts: Texts) -> FigureSpec:
    """The lanes."""
    reached = _lane(result, "multiply")
    facts = {
        "parameters": units.count_text(reached["num_parameters"]),
        "micro_batches": result.settings["micro_batches"],
        "batch": result.settings["batch_size"],
        "steps": result.settings["steps"],
        "threads": result.settings["threads"],
    }
    folded, multiplied, torch = (step_seconds(_lane(result, name)) for name in ("fold", "multiply", "torch"))
    found = texts(
        "clip_stages.figure.found",
        fold=units.factor_text(folded / multiplied),
        torch=units.factor_text(multiplied / torch),
        below=units.factor_text(clipping_seconds(_lane(result, "below")) / clipping_seconds(_lane(result, "torch"))),
    )
    lanes = "; ".join(_in_words(lane, texts) for lane in result.figure["lanes"])
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.clip_stages.figure"),
        alt=texts("clip_stages.figure.alt", lanes=lanes),
        caption=[texts("clip_stages.figure.caption", **facts), found],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
    )


def _error(value: float | None, texts: Texts) -> Cell:
    if value is None:
        return Cell(None, texts("clip_stages.table.not_finite"))
    if value == 0:
        return Cell(0.0, "0")
    exponent = math.floor(math.log10(value))
    return Cell(value, f"{value / 10**exponent:.1f}e−{-exponent}" if exponent < 0 else f"{value:.1f}")


def _range(row: Mapping[str, Any], prefix: str = "") -> Cell:
    low, high = (float(row[f"{prefix}{end}_scale"]) for end in ("smallest", "largest"))
    exponents = [round(math.log10(value)) for value in (low, high)]
    low_text, high_text = (f"1e{exponent}".replace("-", "−") for exponent in exponents)
    return Cell(exponents[1] - exponents[0], f"{low_text} … {high_text}")


def table(result: Result, texts: Texts) -> Table:
    """A row for each function of each framework."""
    columns = [
        Column("operation", texts("clip_stages.column.operation"), numeric=False),
        Column("framework", texts("clip_stages.column.framework"), numeric=False),
        Column("counterpart", texts("clip_stages.column.counterpart"), numeric=False),
        Column("difference", texts("clip_stages.column.difference")),
        Column("framework_error", texts("clip_stages.column.framework_error")),
        Column("tightgrad_error", texts("clip_stages.column.tightgrad_error")),
        Column("bfloat16_error", texts("clip_stages.column.bfloat16_error")),
        Column("tightgrad_bfloat16_error", texts("clip_stages.column.tightgrad_bfloat16_error"), shown=False),
        Column("range", texts("clip_stages.column.range")),
        Column("time", texts("clip_stages.column.time")),
        Column("cannot", texts("clip_stages.column.cannot"), numeric=False),
        Column("measured", texts("clip_stages.column.measured"), numeric=False, shown=False),
    ]
    rows = [
        [
            Cell(row["operation"], texts.html("clip_stages.table.code", name=row["operation"])),
            Cell(row["framework"], f"{row['framework']} {row['version']}"),
            Cell(row["counterpart"], texts.html("clip_stages.table.code", name=row["counterpart"])),
            _error(row["largest_relative_difference"], texts),
            _error(row["framework_error"], texts),
            _error(row["tightgrad_error"], texts),
            _error(row["bfloat16_error"], texts),
            _error(row["tightgrad_bfloat16_error"], texts),
            _range(row),
            cells.optional_cell(row["tightgrad_seconds"] / row["seconds"], units.factor_text),
            Cell(row["cannot"], texts(CANNOT[row["framework"], row["method"]])),
            Cell(row["measured"], row["measured"] or ""),
        ]
        for row in result.table
    ]
    low, high = (
        pick(float(row[f"tightgrad_{end}_scale"]) for row in result.table)
        for end, pick in (("smallest", max), ("largest", min))
    )
    ours = f"1e{round(math.log10(low))} … 1e{round(math.log10(high))}".replace("-", "−")
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.clip_stages.table"),
        caption=[texts("clip_stages.table.caption", trees=result.settings["trees"]), *_agreement(result, texts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[texts("clip_stages.table.note", ours=ours), *_elsewhere(result, texts), *notes(result, texts)],
    )


def _agreement(result: Result, texts: Texts) -> list[str]:
    """The largest difference to each framework."""
    largest: dict[str, float] = {}
    for row in result.table:
        difference = row["largest_relative_difference"]
        value = math.inf if difference is None else float(difference)
        largest[row["framework"]] = max(largest.get(row["framework"], 0.0), value)
    parts = [f"{name} {_error(value if math.isfinite(value) else None, texts).text}" for name, value in largest.items()]
    return [texts("clip_stages.table.agreement", differences=texts.join(parts))]


def _elsewhere(result: Result, texts: Texts) -> list[str]:
    """Which frameworks were not measured on this machine, and when they were."""
    dates = {row["framework"]: str(row["measured"])[:10] for row in result.table if row["measured"]}
    return [texts("clip_stages.table.elsewhere", framework=name, date=date) for name, date in dates.items()]


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=4, content=content)
