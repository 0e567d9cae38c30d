"""Pair 8: the stages of a clipped step as they were run, and the same clipping in other frameworks."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from tightgrad_lab.report import cells, figures, units
from tightgrad_lab.report.files import Runs
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Pair, Table
from tightgrad_lab.report.results import Result, notes, read_result
from tightgrad_lab.report.texts import Texts

NUMBER = 8
LANES = {
    "below": "fig08.below",
    "multiply": "fig08.multiply",
    "fold": "fig08.fold",
    "torch": "fig08.torch",
}
"""The ways of a clipped step, and the keys of their names."""
STAGES = {
    "backward": "fig08.stage.backward",
    "norm": "fig08.stage.norm",
    "factor": "fig08.stage.factor",
    "multiply": "fig08.stage.multiply",
    "optimizer": "fig08.stage.optimizer",
}
CLIPPING = ("norm", "factor", "multiply")
CANNOT = {
    ("PyTorch", "norm"): "table08.cannot.torch.norm",
    ("PyTorch", "global_norm_torch"): "table08.cannot.torch.global_norm",
    ("PyTorch", "global_norm_1"): "table08.cannot.torch.global_norm_1",
    ("PyTorch", "value"): "table08.cannot.torch.value",
    ("TensorFlow", "norm"): "table08.cannot.tensorflow.norm",
    ("TensorFlow", "global_norm"): "table08.cannot.tensorflow.global_norm",
    ("TensorFlow", "per_tensor_norm"): "table08.cannot.tensorflow.per_tensor_norm",
    ("TensorFlow", "value"): "table08.cannot.tensorflow.value",
    ("JAX/optax", "norm"): "table08.cannot.optax.norm",
    ("JAX/optax", "global_norm"): "table08.cannot.optax.global_norm",
    ("JAX/optax", "value"): "table08.cannot.optax.value",
    ("JAX/optax", "block_rms"): "table08.cannot.optax.block_rms",
    ("JAX/optax", "agc"): "table08.cannot.optax.agc",
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
    total = texts("fig08.total", seconds=units.seconds_text(clipping_seconds(lane)))
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
        "fig08.found",
        fold=units.factor_text(folded / multiplied),
        torch=units.factor_text(multiplied / torch),
        below=units.factor_text(clipping_seconds(_lane(result, "below")) / clipping_seconds(_lane(result, "torch"))),
    )
    lanes = "; ".join(_in_words(lane, texts) for lane in result.figure["lanes"])
    return FigureSpec(
        slug="figure08",
        label="8",
        title=texts("pair.8.figure"),
        alt=texts("fig08.alt", lanes=lanes),
        caption=[texts("fig08.caption", **facts), found],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
    )


def _error(value: float | None, texts: Texts) -> Cell:
    if value is None:
        return Cell(None, texts("table08.not_finite"))
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
        Column("operation", texts("col08.operation"), numeric=False),
        Column("framework", texts("col08.framework"), numeric=False),
        Column("counterpart", texts("col08.counterpart"), numeric=False),
        Column("difference", texts("col08.difference")),
        Column("framework_error", texts("col08.framework_error")),
        Column("tightgrad_error", texts("col08.tightgrad_error")),
        Column("bfloat16_error", texts("col08.bfloat16_error")),
        Column("tightgrad_bfloat16_error", texts("col08.tightgrad_bfloat16_error"), shown=False),
        Column("range", texts("col08.range")),
        Column("time", texts("col08.time")),
        Column("cannot", texts("col08.cannot"), numeric=False),
        Column("measured", texts("col08.measured"), numeric=False, shown=False),
    ]
    rows = [
        [
            Cell(row["operation"], texts.html("table08.code", name=row["operation"])),
            Cell(row["framework"], f"{row['framework']} {row['version']}"),
            Cell(row["counterpart"], texts.html("table08.code", name=row["counterpart"])),
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
        slug="table08",
        label="8",
        title=texts("pair.8.table"),
        caption=[texts("table08.caption", trees=result.settings["trees"]), *_agreement(result, texts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[texts("table08.note", ours=ours), *_elsewhere(result, texts), *notes(result, texts)],
    )


def _agreement(result: Result, texts: Texts) -> list[str]:
    """The largest difference to each framework."""
    largest: dict[str, float] = {}
    for row in result.table:
        difference = row["largest_relative_difference"]
        value = math.inf if difference is None else float(difference)
        largest[row["framework"]] = max(largest.get(row["framework"], 0.0), value)
    parts = [f"{name} {_error(value if math.isfinite(value) else None, texts).text}" for name, value in largest.items()]
    return [texts("table08.agreement", differences=texts.join(parts))]


def _elsewhere(result: Result, texts: Texts) -> list[str]:
    """Which frameworks were not measured on this machine, and when they were."""
    dates = {row["framework"]: str(row["measured"])[:10] for row in result.table if row["measured"]}
    return [texts("table08.elsewhere", framework=name, date=date) for name, date in dates.items()]


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NUMBER)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = Pair(number=8, chapter=4, files=("pair08/result.json",), command="tightgrad lab --only 8", content=content)
