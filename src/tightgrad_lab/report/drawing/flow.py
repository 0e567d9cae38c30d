"""The flow of one optimizer step, drawn from the sizes, bytes and times that were measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.model import Layout
from tightgrad_lab.report.texts import Texts

Stage = Mapping[str, Any]
_MAX_LINK = 0.13
LARGER = 1.14
"""A slide writes the small texts so much larger; lines leave room for it."""
_TECHNIQUE = {
    "accumulate": "accumulate",
    "feedback": "compress",
    "encode": "compress",
    "collective": "compress",
    "decode": "compress",
    "clip": "clip",
}


@dataclass(frozen=True, slots=True)
class Grid:
    """Where boxes go, in inches; boxes fill rows from the left."""

    columns: int
    box_width: float
    box_height: float
    gap_x: float
    gap_y: float
    left: float


def _grid(layout: Layout) -> Grid:
    if layout.name == "wide":
        return Grid(4, 1.6, 0.98, 0.233, 0.56, 0.25)
    return Grid(1, 2.75, 0.82, 0.0, 0.3, 0.35)


def _values(stage: Stage, key: str) -> float | None:
    value = stage.get(key)
    return None if value is None else float(value)


def _passing(stages: Sequence[Stage]) -> list[float | None]:
    """The bytes that leave each stage; a stage that names none passes on what came in, but a model does not."""
    passing: list[float | None] = []
    for i, stage in enumerate(stages):
        own = _values(stage, "bytes")
        keeps = stage["id"] in {"guard", "feedback", "collective", "clip", "accumulate"} and i > 0
        passing.append(own if own is not None else passing[-1] if keeps else None)
    return passing


def details(stages: Sequence[Stage], i: int, ranks: int | None, texts: Texts) -> list[str]:
    """The measured facts of a stage in words, its time excluded."""
    stage, facts = stages[i], []
    if shape := stage.get("shape"):
        facts.append(" × ".join(str(size) for size in shape))
    if (parameters := _values(stage, "num_parameters")) is not None:
        facts.append(texts("stage.parameters", count=units.count_text(parameters)))
    if (window := _values(stage, "micro_batches")) is not None:
        facts.append(texts("stage.sum", count=units.count_text(window)))
    if (size := _values(stage, "bytes")) is not None:
        facts.append(units.bytes_text(size))
        before = _passing(stages)[i - 1] if i else None
        if stage["id"] == "encode" and before and size and before / size > 1:
            facts.append(texts("stage.smaller", factor=units.factor_text(before / size)[:-1]))
    if stage["id"] == "collective" and ranks:
        facts.append(texts("stage.ranks", count=ranks))
    if (residual := _values(stage, "residual_norm")) is not None:
        facts.append(texts("stage.residual", value=units.number_text(residual)))
    if (norm := _values(stage, "grad_norm")) is not None:
        facts.append(texts("stage.norm", norm=units.number_text(norm)))
    if (coefficient := _values(stage, "clip_coef")) is not None:
        facts.append(texts("stage.coef", coef=units.number_text(coefficient)))
    if (clipped := _values(stage, "clipped")) is not None:
        facts.append(texts("stage.clipped", share=units.percent_text(clipped)))
    return facts


def stage_name(stage: Stage, texts: Texts) -> str:
    return texts.get(f"stage.{stage['id']}", str(stage["id"]))


def in_words(flow: Mapping[str, Any], texts: Texts) -> str:
    """The whole figure as a sentence per stage, for those who do not see it."""
    stages = flow["stages"]
    parts = []
    for i, stage in enumerate(stages):
        facts = details(stages, i, flow.get("ranks"), texts)
        if (seconds := _values(stage, "seconds")) is not None:
            facts.append(units.seconds_text(seconds))
        colon = "：" if texts.language == "zh" else ": "
        parts.append(stage_name(stage, texts) + (colon + texts.join(facts) if facts else ""))
    return ("；" if texts.language == "zh" else "; ").join(parts)


def _rows(stages: Sequence[Stage], columns: int) -> list[list[int]]:
    """Indices row by row: the stages of a micro-batch first, then the stages of a step."""
    last = max((i for i, stage in enumerate(stages) if stage["id"] == "accumulate"), default=-1)
    rows = []
    for part in (range(last + 1), range(last + 1, len(stages))):
        rows += [list(part[start : start + columns]) for start in range(0, len(part), columns)]
    return rows


def draw(flow: Mapping[str, Any], texts: Texts, layout: Layout) -> Figure:
    """Boxes for the stages, lines as wide as the bytes that pass between them."""
    stages: list[Stage] = flow["stages"]
    grid = _grid(layout)
    rows = _rows(stages, grid.columns)
    window_rows = [r for r, row in enumerate(rows) if any(stages[i]["id"] == "accumulate" for i in row)]
    split = max(window_rows, default=-1) + 1
    label_room, break_room = 0.34, 0.42
    breaks = break_room if 0 < split < len(rows) else 0.0
    height = 0.34 + len(rows) * (grid.box_height + grid.gap_y) - grid.gap_y + label_room + breaks
    figure = figures.canvas(layout.width, height)
    corners: dict[int, tuple[float, float]] = {}
    y = height - 0.1 - label_room
    tops: list[float] = []
    for r, row in enumerate(rows):
        if r == split and r > 0:
            y -= break_room
        tops.append(y)
        for column, i in enumerate(row):
            corners[i] = (grid.left + column * (grid.box_width + grid.gap_x), y - grid.box_height)
        y -= grid.box_height + grid.gap_y

    _panels(figure, flow, texts, layout, grid, tops, split)
    passing = _passing(stages)
    most = max((size for size in passing if size), default=1.0)
    for i in range(len(stages) - 1):
        size = passing[i]
        width = 0.012 if not size else max(0.012, _MAX_LINK * math.sqrt(size / most))
        _link(figure, grid, corners[i], corners[i + 1], width, same_row=corners[i][1] == corners[i + 1][1])
    slowest = max((_values(stage, "seconds") or 0.0 for stage in stages), default=0.0)
    for i, stage in enumerate(stages):
        _box(figure, grid, corners[i], stage, details(stages, i, flow.get("ranks"), texts), slowest, texts)
    return figure


def _panels(
    figure: Figure,
    flow: Mapping[str, Any],
    texts: Texts,
    layout: Layout,
    grid: Grid,
    tops: Sequence[float],
    split: int,
) -> None:
    count = flow.get("micro_batches")
    right = layout.width - grid.left
    parts = [(0, split, texts("image_case.figure.window", count=count) if count else "")] if split else []
    if split < len(tops):
        parts.append((split, len(tops), texts("image_case.figure.step")))
    for first, beyond, label in parts:
        top = tops[first] + 0.32
        bottom = tops[beyond - 1] - grid.box_height - 0.13
        figure.add_artist(
            FancyBboxPatch(
                (0.08, bottom),
                layout.width - 0.16,
                top - bottom,
                boxstyle="round,pad=0,rounding_size=0.1",
                facecolor=figures.PANEL,
                edgecolor="none",
                transform=figure.dpi_scale_trans,
                zorder=0,
            )
        )
        figures.inch_text(
            figure, right, top - 0.16, label, figures.SIZE_SMALL, color=figures.MUTED, va="center", ha="right"
        )


def _link(
    figure: Figure, grid: Grid, start: tuple[float, float], end: tuple[float, float], width: float, *, same_row: bool
) -> None:
    """A line from box to box; to the next row it leaves below, runs between the rows and enters from above."""
    half = width / 2
    head = max(0.055, half * 1.5)
    to_inches = figure.dpi_scale_trans
    style: dict[str, Any] = {"facecolor": figures.LINK, "edgecolor": "none", "transform": to_inches, "zorder": 1}
    if same_row:
        y = start[1] + grid.box_height / 2
        left, right = start[0] + grid.box_width, end[0] - 0.02
        figure.add_artist(Rectangle((left, y - half), right - head - left + 0.01, width, **style))
        tip = [(right - head, y - head), (right - head, y + head), (right, y)]
        figure.add_artist(Polygon(tip, closed=True, **style))
        return
    x_from, x_to = start[0] + grid.box_width / 2, end[0] + grid.box_width / 2
    top_of_next = end[1] + grid.box_height + 0.02
    if x_from == x_to:
        figure.add_artist(
            Rectangle((x_from - half, top_of_next + head - 0.01), width, start[1] - top_of_next - head + 0.01, **style)
        )
    else:
        lane = start[1] - (0.13 + (start[1] - 0.13 - top_of_next) * 0.22) - 0.02
        figure.add_artist(Rectangle((x_from - half, lane - half), width, start[1] - lane + half, **style))
        figure.add_artist(Rectangle((x_to - half, lane - half), x_from - x_to + width, width, **style))
        figure.add_artist(
            Rectangle((x_to - half, top_of_next + head - 0.01), width, lane - top_of_next - head, **style)
        )
    tip = [(x_to - head, top_of_next + head), (x_to + head, top_of_next + head), (x_to, top_of_next)]
    figure.add_artist(Polygon(tip, closed=True, **style))


def _box(
    figure: Figure,
    grid: Grid,
    corner: tuple[float, float],
    stage: Stage,
    facts: Sequence[str],
    slowest: float,
    texts: Texts,
) -> None:
    x, y = corner
    to_inches = figure.dpi_scale_trans
    color = figures.COLORS.get(_TECHNIQUE.get(stage["id"], ""), figures.MUTED)
    figure.add_artist(
        FancyBboxPatch(
            (x, y),
            grid.box_width,
            grid.box_height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=figures.PAPER,
            edgecolor=figures.FAINT,
            linewidth=0.9,
            transform=to_inches,
            zorder=2,
        )
    )
    figure.add_artist(
        Rectangle(
            (x + 0.1, y + grid.box_height - 0.115),
            0.2,
            0.035,
            facecolor=color,
            edgecolor="none",
            transform=to_inches,
            zorder=3,
        )
    )
    inner = grid.box_width - 0.2
    top = y + grid.box_height - 0.235
    figures.inch_text(figure, x + 0.1, top, stage_name(stage, texts), va="center", zorder=3)
    line = top - 0.17
    for fact in _pack(figure, facts, inner / LARGER):
        figures.inch_text(figure, x + 0.1, line, fact, figures.SIZE_SMALL, color=figures.MUTED, va="center", zorder=3)
        line -= 0.146
    seconds = _values(stage, "seconds")
    if seconds is None:
        return
    label = units.seconds_text(seconds)
    width = figures.text_size(figure, label, figures.SIZE_SMALL)[0]
    foot = y + 0.115
    figures.inch_text(
        figure,
        x + grid.box_width - 0.1,
        foot,
        label,
        figures.SIZE_SMALL,
        color=figures.INK,
        va="center",
        ha="right",
        zorder=3,
    )
    track = inner - width - 0.1
    for share, shade in ((1.0, figures.BAND), (seconds / slowest if slowest else 0.0, color)):
        figure.add_artist(
            Rectangle(
                (x + 0.1, foot - 0.02),
                max(0.01, track * share),
                0.04,
                facecolor=shade,
                edgecolor="none",
                transform=to_inches,
                zorder=3,
            )
        )


def _pack(figure: Figure, facts: Sequence[str], width: float) -> list[str]:
    """Facts joined into as few lines as fit the width."""
    lines: list[str] = []
    for fact in facts:
        joined = f"{lines[-1]} · {fact}" if lines else fact
        if lines and figures.text_size(figure, joined, figures.SIZE_SMALL)[0] <= width:
            lines[-1] = joined
        else:
            lines.append(fact)
    return lines
