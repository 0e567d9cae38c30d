"""The stages of a clipped step as they were run, and the same clipping in other frameworks."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from tightgrad_lab.report import cells, figures, units
from tightgrad_lab.report.files import Runs
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.results import Result, notes, read_result
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug

NAME = "clip_stages"
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
NEGLIGIBLE = 2e-6
"""Seconds below which a stage did nothing."""
Lane = Mapping[str, Any]


def clipping_seconds(lane: Lane) -> float:
    """What clipping adds: norm, factor and multiplication."""
    return sum(float(lane["seconds"][stage]) for stage in CLIPPING)


def step_seconds(lane: Lane) -> float:
    """Clipping and the optimizer; folding moves work from one to the other."""
    return clipping_seconds(lane) + float(lane["seconds"]["optimizer"])


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """A lane for each way: boxes are stages with their times and the bytes they touch."""
    narrow = layout is NARROW
    lanes: list[Lane] = list(result.figure["lanes"])
    left, box, gap, tall = (0.1, 0.59, 0.06, 0.44) if narrow else (1.72, 1.02, 0.14, 0.46)
    head = 0.28 if narrow else 0.2
    top, bottom = 0.56 if narrow else 0.42, 0.12
    height = top + len(lanes) * (tall + head) + bottom
    figure = figures.canvas(layout.width, height)
    slowest = max(float(lane["seconds"][stage]) for lane in lanes for stage in STAGES if stage != "backward")
    corners = [left + column * (box + gap) for column in range(len(STAGES))]
    size = 7.0 if narrow else figures.SIZE_SMALL
    for x, key in zip(corners, STAGES.values(), strict=True):
        name = texts(key).replace(" + ", " +\n") if narrow else texts(key)
        figures.inch_text(figure, x + box / 2, height - 0.26, name, size, ha="center", va="center")
    for row, lane in enumerate(lanes):
        y = height - top - (row + 1) * (tall + head)
        for begin, x in pairwise(corners):
            figures.inch_line(
                figure, (begin + box, x), (y + tall / 2, y + tall / 2), color=figures.LINK, linewidth=1.1, zorder=1
            )
        for x, stage in zip(corners, STAGES, strict=True):
            _stage(figure, (x, y, box, tall), lane, stage, slowest)
        _lane_name(figure, lane, texts, narrow, (y, tall))
    return figure


def _stage(figure: Figure, place: tuple[float, float, float, float], lane: Lane, stage: str, slowest: float) -> None:
    x, y, width, height = place
    seconds = float(lane["seconds"][stage])
    acts = seconds > NEGLIGIBLE
    clips = stage in CLIPPING
    frame = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.05",
        facecolor=figures.PANEL,
        edgecolor=figures.COLORS["clip"] if clips and acts else figures.FAINT,
        linewidth=0.9,
        zorder=2,
    )
    frame.set_transform(figure.dpi_scale_trans)
    figure.add_artist(frame)
    shown = units.seconds_text(seconds) if acts else units.MISSING
    figures.inch_text(
        figure, x + width / 2, y + height - 0.14, shown, figures.SIZE_SMALL, ha="center", va="center", zorder=3
    )
    touched = lane["memory_bytes"][stage]
    if touched is not None and acts:
        per_parameter = f"{touched / lane['num_parameters']:.0f}{units.NBSP}B"
        figures.inch_text(
            figure, x + width / 2, y + 0.15, per_parameter, 7.0, color=figures.MUTED, ha="center", va="center", zorder=3
        )
    if acts and stage != "backward":
        color = figures.COLORS["clip"] if clips else figures.LINK
        bar = Rectangle((x + 0.06, y + 0.035), (width - 0.12) * seconds / slowest, 0.03, facecolor=color, zorder=3)
        bar.set_transform(figure.dpi_scale_trans)
        figure.add_artist(bar)


def _lane_name(figure: Figure, lane: Lane, texts: Texts, narrow: bool, place: tuple[float, float]) -> None:
    y, tall = place
    name = texts(LANES[lane["lane"]])
    total = texts("clip_stages.figure.total", seconds=units.seconds_text(clipping_seconds(lane)))
    if narrow:
        figures.inch_text(figure, 0.1, y + tall + 0.1, f"{name} · {total}", 7.0, va="center")
        return
    figures.inch_text(figure, 0.1, y + tall / 2 + 0.1, name, figures.SIZE_SMALL, va="center")
    figures.inch_text(figure, 0.1, y + tall / 2 - 0.1, total, 7.0, color=figures.MUTED, va="center")


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
