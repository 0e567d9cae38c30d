"""Encode, collective, decode as they were run, and what other frameworks do."""

import math
from typing import Literal

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.compression import EncodeLane, EncodeTimelineFigure, EncodeTimelineRow, PeerCell

Result = ResultOf[EncodeTimelineFigure, EncodeTimelineRow]

NAME = "encode_timeline"
LANES = {
    "dense": "encode_timeline.figure.dense",
    "cast": "encode_timeline.figure.cast",
    "quantise": "encode_timeline.figure.quantise",
    "sparsify": "encode_timeline.figure.sparsify",
    "low_rank": "encode_timeline.figure.low_rank",
}
"""The plans, and the keys of their names."""
STAGES = {"encode": "stage.encode", "collective": "stage.collective", "decode": "stage.decode"}
VALUES = {
    "yes": "encode_timeline.table.yes",
    "no": "encode_timeline.table.no",
    "part": "encode_timeline.table.part",
    "none": "encode_timeline.table.none",
    "hangs": "encode_timeline.table.hangs",
}
COLUMNS: dict[Literal["ddp", "fsdp2", "feedback", "resume", "cpu"], str] = {
    "ddp": "encode_timeline.column.ddp",
    "fsdp2": "encode_timeline.column.fsdp2",
    "feedback": "encode_timeline.column.feedback",
    "resume": "encode_timeline.column.resume",
    "cpu": "encode_timeline.column.cpu",
}
_MOST = 0.2
Lane = EncodeLane


def _bytes_after(lane: Lane) -> dict[str, float]:
    """The bytes that leave each stage, and, as "gradient", those that come in."""
    gradient, sent = float(lane["gradient_bytes"]), float(lane["wire_bytes"])
    payload = lane["payload_bytes"]
    encoded = gradient if lane["plan"] == "dense" else sent if payload is None else float(payload)
    return {"gradient": gradient, "encode": encoded, "collective": sent, "decode": gradient}


def _seconds(lane: Lane, stage: str) -> float | None:
    value = lane["seconds"].get(stage)
    return None if not value else float(value)


def _total(lane: Lane) -> float:
    return sum(_seconds(lane, stage) or 0.0 for stage in STAGES)


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """A lane for each plan: boxes are stages, lines between them are as wide as the bytes that pass."""
    narrow = layout is NARROW
    lanes: list[Lane] = list(result.figure["lanes"])
    left, box, gap, tall = (0.1, 0.8, 0.2, 0.44) if narrow else (1.72, 1.25, 0.42, 0.46)
    head = 0.26 if narrow else 0.18
    top, bottom = 0.42, 0.12
    height = top + len(lanes) * (tall + head) + bottom
    figure = figures.canvas(layout.width, height)
    most = max(float(lane["gradient_bytes"]) for lane in lanes)
    slowest = max(_seconds(lane, stage) or 0.0 for lane in lanes for stage in STAGES)
    corners = [left + gap + column * (box + gap) for column in range(len(STAGES))]
    for x, key in zip(corners, STAGES.values(), strict=True):
        figures.inch_text(figure, x + box / 2, height - 0.24, texts(key), figures.SIZE_SMALL, ha="center", va="center")
    for row, lane in enumerate(lanes):
        y = height - top - (row + 1) * (tall + head)
        passing = list(_bytes_after(lane).values())
        starts = [left, *(x + box for x in corners)]
        for place, nbytes in enumerate(passing):
            begin, end = starts[place], corners[place] if place < len(corners) else starts[place] + gap
            _link(figure, begin, min(end, layout.width - 0.06), y + tall / 2, nbytes, most)
        for x, stage in zip(corners, STAGES, strict=True):
            _stage(figure, (x, y, box, tall), lane, stage, slowest)
        _lane_name(figure, lane, texts, narrow, (y, tall))
    return figure


def _link(figure: Figure, begin: float, end: float, middle: float, nbytes: float, most: float) -> None:
    width = max(0.012, _MOST * math.sqrt(nbytes / most))
    patch = Rectangle(
        (begin, middle - width / 2), end - begin, width, facecolor=figures.LINK, edgecolor="none", zorder=1
    )
    patch.set_transform(figure.dpi_scale_trans)
    figure.add_artist(patch)


def _stage(figure: Figure, place: tuple[float, float, float, float], lane: Lane, stage: str, slowest: float) -> None:
    x, y, width, height = place
    seconds = _seconds(lane, stage)
    color = figures.COLORS["compress"]
    frame = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.05",
        facecolor=figures.PANEL,
        edgecolor=color if seconds else figures.FAINT,
        linewidth=0.9,
        zorder=2,
    )
    frame.set_transform(figure.dpi_scale_trans)
    figure.add_artist(frame)
    shown = units.MISSING if seconds is None else units.seconds_text(seconds)
    figures.inch_text(
        figure, x + width / 2, y + height - 0.14, shown, figures.SIZE_SMALL, ha="center", va="center", zorder=3
    )
    nbytes = units.bytes_text(_bytes_after(lane)[stage])
    figures.inch_text(
        figure, x + width / 2, y + 0.15, nbytes, 7.0, color=figures.MUTED, ha="center", va="center", zorder=3
    )
    if seconds:
        bar = Rectangle((x + 0.06, y + 0.035), (width - 0.12) * seconds / slowest, 0.03, facecolor=color, zorder=3)
        bar.set_transform(figure.dpi_scale_trans)
        figure.add_artist(bar)


def _lane_name(figure: Figure, lane: Lane, texts: Texts, narrow: bool, place: tuple[float, float]) -> None:
    y, tall = place
    name, total = texts(LANES[lane["plan"]]), units.seconds_text(_total(lane))
    if narrow:
        figures.inch_text(figure, 0.1, y + tall + 0.1, f"{name} · {total}", figures.SIZE_SMALL, va="center")
        return
    figures.inch_text(figure, 0.1, y + tall / 2 + 0.1, name, figures.SIZE_SMALL, va="center")
    together = texts("encode_timeline.figure.total", seconds=total)
    figures.inch_text(figure, 0.1, y + tall / 2 - 0.1, together, 7.0, color=figures.MUTED, va="center")


def _in_words(lane: Lane, texts: Texts) -> str:
    parts = []
    for stage, key in STAGES.items():
        seconds = _seconds(lane, stage)
        shown = units.MISSING if seconds is None else units.seconds_text(seconds)
        parts.append(f"{texts(key)} {shown} ({units.bytes_text(_bytes_after(lane)[stage])})")
    colon = "：" if texts.language == "zh" else ": "
    return f"{texts(LANES[lane['plan']])} [{lane['method']}]{colon}{texts.join(parts)}"


def figure(result: Result, texts: Texts) -> FigureSpec:
    """The stages of each plan."""
    lanes: list[Lane] = list(result.figure["lanes"])
    dense = next((lane for lane in lanes if lane["plan"] == "dense"), lanes[0])
    fastest = min(lanes, key=_total)
    facts = {
        "ranks": result.figure["ranks"],
        "gradient": units.bytes_text(float(dense["gradient_bytes"])),
        "steps": result.settings["steps"],
    }
    stop = "；" if texts.language == "zh" else "; "
    in_words = stop.join(_in_words(lane, texts) for lane in lanes)
    verdict = texts(
        "encode_timeline.figure.nothing" if fastest is dense else "encode_timeline.figure.fastest",
        fastest=texts(LANES[fastest["plan"]]),
        seconds=units.seconds_text(_total(fastest)),
        dense=units.seconds_text(_total(dense)),
    )
    methods = texts.join([f"{texts(LANES[lane['plan']])} {lane['method']}" for lane in lanes])
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.encode_timeline.figure"),
        alt=texts("encode_timeline.figure.alt", lanes=in_words, **facts),
        caption=[texts("encode_timeline.figure.caption", methods=methods, **facts), verdict],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
    )


def _cell(found: PeerCell, texts: Texts) -> Cell:
    value, how = found["value"], found["how"]
    if value in VALUES:
        shown = Markup("{}").format(texts(VALUES[value]))
    else:
        shown = Markup("{} <code>{}</code>").format(texts("encode_timeline.table.fails"), value)
    if how == "quoted":
        mark = Markup('<a href="{}">{}</a>').format(found["source"], texts("encode_timeline.table.quoted"))
    else:
        mark = Markup("{}").format(texts("encode_timeline.table.run"))
    raw = f"{value} ({how}{': ' + found['source'] if found['source'] else ''})"
    return Cell(raw, Markup("{} <small>{}</small>").format(shown, mark))


def table(result: Result, texts: Texts) -> Table:
    """A row for each framework and method."""
    columns = [
        Column("framework", texts("encode_timeline.column.framework"), numeric=False),
        Column("method", texts("encode_timeline.column.method"), numeric=False),
        *(Column(name, texts(key), numeric=False) for name, key in COLUMNS.items()),
    ]
    rows = [
        [
            Cell(row["framework"], row["framework"]),
            Cell(row["method"], Markup("<code>{}</code>").format(row["method"])),
            *(_cell(row[name], texts) for name in COLUMNS),
        ]
        for row in result.table
    ]
    caption = texts(
        "encode_timeline.table.caption", torch=result.environment["torch"], seconds=f"{result.settings['seconds']:g}"
    )
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.encode_timeline.table"),
        caption=[caption],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[
            texts("encode_timeline.table.columns"),
            texts("encode_timeline.table.deepspeed"),
            texts("encode_timeline.table.torchft"),
            texts("encode_timeline.table.hivemind"),
            *notes(result, texts),
        ],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=6, content=content)
