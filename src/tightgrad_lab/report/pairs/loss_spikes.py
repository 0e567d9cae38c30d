"""Loss spikes with injected outliers, without clipping and under five methods."""

import math
from statistics import fmean, median
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.claims.words import formatted
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.measured.stats import Comparison, compare
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.pairs import studies
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.clipping import LossSpikesFigure, LossSpikesRow, SpikeCurve

Result = ResultOf[LossSpikesFigure, LossSpikesRow]

NAME = "loss_spikes"
METHODS = {
    "none": "loss_spikes.figure.none",
    "global_norm": "loss_spikes.figure.global_norm",
    "agc": "loss_spikes.figure.agc",
    "autoclip": "loss_spikes.figure.autoclip",
    "zclip": "loss_spikes.figure.zclip",
    "adagc": "loss_spikes.figure.adagc",
    "clean": "loss_spikes.figure.clean",
}
"""The methods, in the order in which they are shown, and the keys of their names."""
PANELS = [method for method in METHODS if method != "clean"]
_SMOOTH = 5
Row = LossSpikesRow
Measure = Literal["clip_rate", "final_loss", "highest", "lost", "outlier_norm", "spikes", "usual_norm"]


def _row(result: Result, method: str) -> Row:
    return next(row for row in result.table if row["method"] == method)


def values(row: Row, key: Measure) -> dict[int, float]:
    """One value for each seed; a run that was not finite has none."""
    return {seed: float(value) for seed, run in enumerate(row["runs"]) if (value := run[key]) is not None}


def _curves(result: Result, method: str) -> list[SpikeCurve]:
    return [curve for curve in result.figure["curves"] if curve["method"] == method]


def _across_seeds(result: Result, method: str) -> tuple[list[float], list[float], list[float]]:
    """Median, lowest and highest loss at each step, of the seeds whose batch was text; NaN where none was."""
    middle, low, high = [], [], []
    for losses in zip(*(curve["losses"] for curve in _curves(result, method)), strict=True):
        found = [float(loss) for loss in losses if loss is not None] or [math.nan]
        middle.append(median(found))
        low.append(min(found))
        high.append(max(found))
    return middle, low, high


def _panel(axes: Axes, result: Result, method: str) -> None:
    color = figures.MUTED if method == "none" else figures.COLORS["clip"]
    clean, _, _ = _across_seeds(result, "clean")
    axes.plot(range(len(clean)), clean, color=figures.LINK, linewidth=0.7)
    for step in sorted({step for curve in _curves(result, method) for step in curve["outliers"]}):
        axes.axvspan(step - 0.5, step + 0.5, facecolor=figures.BAND, edgecolor="none", zorder=0)
    for curve in _curves(result, method):
        losses = [math.nan if loss is None else float(loss) for loss in curve["losses"]]
        axes.plot(range(len(losses)), losses, color=color, linewidth=0.7, alpha=0.8)
    axes.grid(True, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, pad=3)


def _norms(axes: Axes, result: Result, method: str) -> None:
    """The norm of the gradient before clipping, on a logarithmic scale that all methods share."""
    color = figures.MUTED if method == "none" else figures.COLORS["clip"]
    every = [norm for curve in result.figure["curves"] for norm in curve["norms"] if norm]
    for curve in _curves(result, method):
        for step in curve["outliers"]:
            axes.axvspan(step - 0.5, step + 0.5, facecolor=figures.BAND, edgecolor="none", zorder=0)
        axes.plot([math.nan if norm is None else norm for norm in curve["norms"]], color=color, linewidth=0.6)
    axes.set_yscale("log")
    axes.set_ylim(0.8 * min(every), 1.2 * max(every))
    axes.yaxis.set_major_locator(LogLocator(10, numticks=4))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, pad=3)


def _limits(result: Result) -> tuple[float, float]:
    losses = [
        float(loss) for curve in result.figure["curves"] for loss in curve["losses"][_SMOOTH:] if loss is not None
    ]
    return min(losses) - 0.1, max(losses) + 0.1


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """A panel for each method: the loss of every seed, and behind it that without outliers."""
    columns = 2 if layout is NARROW else 3
    rows = math.ceil(len(PANELS) / columns)
    left, right, top, bottom, gap, head, panel = 0.42, 0.12, 0.42, 0.5, 0.2, 0.34, 1.1
    strip = 0.5 if all("norms" in curve for curve in result.figure["curves"]) else 0.0
    width = (layout.width - left - right - (columns - 1) * gap) / columns
    height = top + rows * (head + panel + strip) + bottom
    figure = figures.canvas(layout.width, height)
    steps = int(result.settings["steps"])
    low, high = _limits(result)
    for place, method in enumerate(PANELS):
        row, column = divmod(place, columns)
        x, y = left + column * (width + gap), height - top - (row + 1) * (head + panel + strip) + strip
        axes = figures.inch_axes(figure, x, y, width, panel)
        _panel(axes, result, method)
        axes.set_ylim(low, high)
        axes.set_xlim(0, steps)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(labelleft=column == 0, labelbottom=not strip)
        if strip:
            axes = figures.inch_axes(figure, x, y - strip + 0.04, width, strip - 0.1)
            _norms(axes, result, method)
            axes.set_xlim(0, steps)
        axes.xaxis.set_major_locator(FixedLocator([0, steps / 2, steps]))
        labels = axes.set_xticklabels([f"{value:g}" for value in (0, steps / 2, steps)])
        labels[0].set_horizontalalignment("left")
        labels[-1].set_horizontalalignment("right")
        axes.tick_params(labelleft=column == 0, labelbottom=place + columns >= len(PANELS))
        _heading(figure, result, method, texts, (x, y + panel + 0.11, width))
    lines = [texts("loss_spikes.figure.y"), texts("loss_spikes.figure.norms")]
    for line, said in enumerate(
        lines if layout is NARROW else [("；" if texts.language == "zh" else "; ").join(lines)]
    ):
        level = height - 0.16 - 0.17 * line
        figures.inch_text(figure, 0.1, level, said, figures.SIZE_SMALL, color=figures.MUTED, va="center")
    figures.inch_text(
        figure,
        layout.width / 2,
        0.15,
        texts("loss_spikes.figure.x"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        ha="center",
        va="center",
    )
    return figure


def _heading(figure: Figure, result: Result, method: str, texts: Texts, place: tuple[float, float, float]) -> None:
    x, y, width = place
    figures.inch_text(figure, x, y, texts(METHODS[method]), figures.SIZE_SMALL)
    spikes = fmean(values(_row(result, method), "spikes").values())
    counted = texts("loss_spikes.figure.spikes", count=f"{spikes:.1f}")
    figures.inch_text(figure, x + width, y, counted, figures.SIZE_SMALL, color=figures.MUTED, ha="right")


def against_none(result: Result, method: str, key: Measure) -> Comparison | None:
    """How much lower than without clipping, by seed; None for that itself."""
    if method in ("none", "clean"):
        return None
    own, base = values(_row(result, method), key), values(_row(result, "none"), key)
    if not own or not base:
        return None
    return compare({seed: -value for seed, value in own.items()}, {s: -v for s, v in base.items()}, samples=None)


def _findings(result: Result, texts: Texts) -> list[str]:
    """Which methods have fewer spikes, and which a lower final loss, by more than the noise over seeds."""
    found = []
    for key in ("spikes", "final_loss"):
        better, worse = [], []
        for method in PANELS[1:]:
            comparison = against_none(result, method, key)
            if comparison is not None and comparison.verdict == "ahead":
                better.append(texts(METHODS[method]))
            if comparison is not None and comparison.verdict == "short":
                worse.append(texts(METHODS[method]))
        nobody = texts("loss_spikes.figure.nobody")
        names = {"better": texts.join(better) or nobody, "worse": texts.join(worse) or nobody}
        found.append(texts("loss_spikes.figure.fewer" if key == "spikes" else "loss_spikes.figure.lower", **names))
    return found


def _shows(result: Result, texts: Texts) -> str:
    """What outliers do to norm and loss without a bound, and with each method."""
    none = _row(result, "none")
    usual, outlier = values(none, "usual_norm"), values(none, "outlier_norm")
    spikes = {method: fmean(found.values()) for method in PANELS if (found := values(_row(result, method), "spikes"))}
    if not usual or not outlier or not {"none"} < spikes.keys():
        return ""
    bounded = {method: count for method, count in spikes.items() if method != "none"}
    least, most = min(bounded, key=lambda method: bounded[method]), max(bounded, key=lambda method: bounded[method])
    return texts(
        "loss_spikes.figure.shows",
        ratio=formatted(fmean(outlier.values()) / fmean(usual.values()), "factor", texts),
        none=f"{spikes['none']:.1f}",
        least=f"{bounded[least]:.1f}",
        least_method=texts(METHODS[least]),
        most=f"{bounded[most]:.1f}",
        most_method=texts(METHODS[most]),
        fewer=sum(count < spikes["none"] for count in bounded.values()),
        count=len(bounded),
    )


def figure(result: Result, texts: Texts) -> FigureSpec:
    """Loss against steps."""
    facts = {
        "width": result.settings["width"],
        "layers": result.settings["layers"],
        "steps": result.settings["steps"],
        "batch": result.settings["batch_size"],
        "rate": f"{result.settings['learning_rate']:g}",
        "betas": texts.join([f"{beta:g}" for beta in result.figure["betas"]]),
        "outliers": result.settings["outliers"],
        "seeds": result.settings["seeds"],
        "burst": result.figure["burst"],
        "before": result.figure["before"],
        "after": result.figure["after"],
        "nats": f"{result.figure['spike_nats']:g}",
    }
    points = [
        texts(
            "loss_spikes.figure.point",
            method=texts(METHODS[method]),
            spikes=f"{fmean(values(_row(result, method), 'spikes').values()):.1f}",
            loss=units.number_text(fmean(values(_row(result, method), "final_loss").values())),
        )
        for method in METHODS
        if values(_row(result, method), "final_loss")
    ]
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.loss_spikes.figure"),
        alt=texts("loss_spikes.figure.alt", points=" ".join(points)),
        caption=[texts("loss_spikes.figure.caption", **facts), *_findings(result, texts)],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
        shows=_shows(result, texts),
    )


def _spread(row: Row, key: Measure) -> Cell:
    found = values(row, key)
    if len(found) < len(row["runs"]):
        return Cell(None, units.MISSING)
    form = units.percent_text if key == "clip_rate" else units.number_text
    return cells.spread_cell(found, form)


def table(result: Result, texts: Texts) -> Table:
    """A row for each method."""
    columns = [
        Column("method", texts("loss_spikes.column.method"), numeric=False),
        Column("settings", texts("loss_spikes.column.settings"), numeric=False, shown=False),
        Column("spikes", texts("loss_spikes.column.spikes")),
        Column("highest", texts("loss_spikes.column.highest"), "nats"),
        Column("lost", texts("loss_spikes.column.lost"), "nats"),
        Column("final_loss", texts("loss_spikes.column.final_loss"), "nats"),
        Column("clip_rate", texts("col.clipped")),
        Column("outlier_norm", texts("loss_spikes.column.outlier_norm")),
    ]
    rows = []
    for method, key in METHODS.items():
        row = _row(result, method)
        has_outliers = all(run["outlier_norm"] is not None for run in row["runs"])
        rows.append(
            [
                Cell(method, texts("loss_spikes.table.autoclip" if method == "autoclip" else key)),
                Cell(row["settings"], row["settings"] or units.MISSING),
                _spread(row, "spikes"),
                _spread(row, "highest"),
                _spread(row, "lost"),
                _spread(row, "final_loss"),
                Cell(None, units.MISSING) if row["settings"] is None else _spread(row, "clip_rate"),
                _spread(row, "outlier_norm") if has_outliers else Cell(None, units.MISSING),
            ]
        )
    settings = "; ".join(str(row["settings"]) for row in result.table if row["settings"])
    facts = {"held_out": units.percent_text(result.figure["held_out"]), "seeds": result.settings["seeds"]}
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.loss_spikes.table"),
        caption=[texts("loss_spikes.table.caption", **facts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[texts("loss_spikes.table.settings", settings=settings), *notes(result, texts)],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return (
        None
        if result is None
        else Content([figure(result, texts), table(result, texts), *studies.tables(NAME, runs, texts)])
    )


PAIR = measured_pair(NAME, chapter=4, content=content)
