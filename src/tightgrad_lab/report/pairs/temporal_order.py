"""Temporal order with and without clipping, and the kinds of networks on real data."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from tightgrad_lab.report import cells, figures, units
from tightgrad_lab.report.files import Runs
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.results import Result, notes, read_result
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug

NAME = "temporal_order"
KINDS = {
    "rnn": "temporal_order.figure.rnn",
    "lstm": "temporal_order.figure.lstm",
    "transformer": "temporal_order.table.transformer",
    "cnn": "temporal_order.table.cnn",
}
"""The kinds of networks, and the keys of their names."""
WAYS = {False: "temporal_order.figure.without", True: "temporal_order.figure.with"}
_JITTER = 0.07
Row = Mapping[str, Any]


def _runs(result: Result, kind: str, length: int, clipped: bool) -> list[Row]:
    """The runs of one place; without clipping those of the rate that learned most often, of several the highest."""
    own = [
        run for run in result.figure["runs"] if (run["kind"], run["length"], run["clipped"]) == (kind, length, clipped)
    ]
    rates = sorted({run["learning_rate"] for run in own}, reverse=True)
    by_rate = {rate: [run for run in own if run["learning_rate"] == rate] for rate in rates}
    return max(by_rate.values(), key=lambda runs: (learned(runs), sum(run["accuracy"] for run in runs)), default=[])


def learned(runs: Sequence[Row]) -> int:
    """How many of the runs learned the task."""
    return sum(bool(run["learned"]) for run in runs)


def _kinds(result: Result) -> list[str]:
    found = {run["kind"] for run in result.figure["runs"]}
    return [kind for kind in KINDS if kind in found]


def _lengths(result: Result, kind: str) -> list[int]:
    return sorted({int(run["length"]) for run in result.figure["runs"] if run["kind"] == kind})


def shown_length(result: Result, kind: str) -> int:
    """The greatest length at which clipping learned in all runs and plain SGD in none; without one, the greatest."""
    lengths = _lengths(result, kind)
    telling = [
        length
        for length in lengths
        if not learned(_runs(result, kind, length, False))
        and learned(with_clip := _runs(result, kind, length, True)) == len(with_clip)
    ]
    return (telling or lengths)[-1]


def _color(clipped: bool) -> str:
    return figures.COLORS["clip"] if clipped else figures.MUTED


def _norms(axes: Axes, result: Result, kind: str, length: int) -> None:
    steps = int(result.settings["steps"])
    for clipped in WAYS:
        for run in _runs(result, kind, length, clipped):
            curve = [value for value in run["curve"] if value is not None]
            width = -(-steps // 100)
            places = [min((place + 1) * width, run["steps"]) for place in range(len(curve))]
            axes.plot(places, curve, color=_color(clipped), linewidth=0.9, alpha=0.75)
            if curve:
                axes.plot(
                    places[-1:], curve[-1:], "o" if run["learned"] else "x", color=_color(clipped), markersize=3.4
                )
    axes.axhline(float(result.settings["max_norm"]), color=figures.LINK, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.set_yscale("log")
    axes.set_xlim(0, steps * 1.03)
    axes.yaxis.set_major_locator(LogLocator(10, numticks=7))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator([0, steps / 2, steps]))
    labels = axes.set_xticklabels([units.count_text(value) for value in (0, steps / 2, steps)])
    labels[-1].set_horizontalalignment("right")


def _successes(axes: Axes, result: Result, kind: str) -> None:
    lengths = _lengths(result, kind)
    for place, length in enumerate(lengths):
        for clipped, side in ((False, -0.2), (True, 0.2)):
            runs = _runs(result, kind, length, clipped)
            for seed, run in enumerate(runs):
                x = place + side + _JITTER * (seed - (len(runs) - 1) / 2)
                marker = "o" if run["learned"] else "x"
                axes.plot([x], [run["accuracy"]], marker, color=_color(clipped), markersize=3.6)
            label = f"{learned(runs)}/{len(runs)}"
            axes.annotate(
                label, (place + side, 1.09), color=_color(clipped), fontsize=7.0, ha="center", annotation_clip=False
            )
    axes.set_ylim(0, 1.06)
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1.0]))
    axes.set_yticklabels(["0", "25", "50", "75", f"100{units.NBSP}%"])
    axes.xaxis.set_major_locator(FixedLocator(range(len(lengths))))
    axes.set_xticklabels([str(length) for length in lengths])


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """Norms on the way at one length, then what every run reached at every length."""
    narrow = layout is NARROW
    kinds = _kinds(result)
    panels = [("norms", kinds[0]), *(("successes", kind) for kind in kinds)]
    left, right, gap, head, panel, foot = 0.52, 0.12, 0.5, 0.5, 1.55, 0.5
    legend = 0.5 if narrow else 0.3
    across = 1 if narrow else len(panels)
    rows = len(panels) if narrow else 1
    width = (layout.width - left - right - (across - 1) * gap) / across
    height = legend + rows * (head + panel + foot)
    figure = figures.canvas(layout.width, height)
    for place, (what, kind) in enumerate(panels):
        row, column = divmod(place, across)
        x, y = left + column * (width + gap), height - legend - row * (head + panel + foot) - head - panel
        axes = figures.inch_axes(figure, x, y, width, panel)
        name = texts(KINDS[kind])
        if what == "norms":
            length = shown_length(result, kind)
            _norms(axes, result, kind, length)
            title, below = (
                texts("temporal_order.figure.norms", kind=name, length=length),
                texts("temporal_order.figure.step"),
            )
        else:
            _successes(axes, result, kind)
            title, below = texts("temporal_order.figure.accuracy", kind=name), texts("temporal_order.figure.length")
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=3)
        figures.inch_text(figure, x - left + 0.1, y + panel + 0.29, title, figures.SIZE_SMALL, va="center")
        figures.inch_text(
            figure, x + width / 2, y - 0.33, below, figures.SIZE_SMALL, color=figures.MUTED, ha="center", va="center"
        )
    x = 0.1
    for clipped, key in WAYS.items():
        figures.inch_line(figure, (x, x + 0.22), (height - 0.16, height - 0.16), color=_color(clipped), linewidth=1.6)
        figures.inch_text(figure, x + 0.28, height - 0.16, texts(key), figures.SIZE_SMALL, va="center")
        x += 0.28 + figures.text_size(figure, texts(key), figures.SIZE_SMALL)[0] + 0.25
    place_of_marks = (0.1, height - 0.36) if narrow else (x, height - 0.16)
    figures.inch_text(
        figure,
        *place_of_marks,
        texts("temporal_order.figure.marks"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        va="center",
    )
    return figure


def _in_words(result: Result, kind: str, texts: Texts) -> str:
    found = []
    for length in _lengths(result, kind):
        plain, clipped = _runs(result, kind, length, False), _runs(result, kind, length, True)
        counts = {"without": learned(plain), "with_clip": learned(clipped), "count": len(clipped)}
        found.append(texts("temporal_order.figure.point", length=length, **counts))
    return f"{texts(KINDS[kind])}: {texts.join(found)}"


def _turned(result: Result, kind: str, *, same_rate: bool) -> list[str]:
    """The lengths at which clipping learned in all runs and plain SGD in none: at clipping's rate, or at any."""
    rate = result.settings["rates"][kind][0]
    found = []
    for length in _lengths(result, kind):
        plain = [run for run in result.figure["runs"] if (run["kind"], run["length"]) == (kind, length)]
        plain = [run for run in plain if not run["clipped"] and (not same_rate or run["learning_rate"] == rate)]
        clipped = _runs(result, kind, length, True)
        if not learned(plain) and learned(clipped) == len(clipped):
            found.append(str(length))
    return found


def _findings(result: Result, texts: Texts) -> list[str]:
    """Whether clipping turned failure into success, by kind: at the same learning rate, and against any."""
    found = []
    for kind in _kinds(result):
        several = len(result.settings["rates"][kind]) > 1
        for same_rate in (True, False) if several else (True,):
            lengths = _turned(result, kind, same_rate=same_rate)
            key = "temporal_order.figure.same_rate" if same_rate else "temporal_order.figure.any_rate"
            shown = texts.join(lengths) if lengths else texts("temporal_order.figure.nowhere")
            found.append(texts(key, kind=texts(KINDS[kind]), lengths=shown))
    return found


def _rates(result: Result, texts: Texts) -> str:
    parts = [
        texts(
            "temporal_order.figure.rate",
            kind=texts(KINDS[kind]),
            rates=texts.join([f"{rate:g}" for rate in result.settings["rates"][kind]]),
            first=f"{result.settings['rates'][kind][0]:g}",
        )
        for kind in _kinds(result)
    ]
    return " ".join(parts)


def figure(result: Result, texts: Texts) -> FigureSpec:
    """The temporal-order task."""
    kind = _kinds(result)[0]
    facts = {
        "steps": units.count_text(result.settings["steps"]),
        "batch": result.settings["batch_size"],
        "hidden": result.settings["hidden"],
        "max_norm": f"{result.settings['max_norm']:g}",
        "seeds": result.settings["seeds"],
        "tests": units.count_text(result.settings["test_sequences"]),
        "length": shown_length(result, kind),
    }
    points = "; ".join(_in_words(result, kind, texts) for kind in _kinds(result))
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.temporal_order.figure"),
        alt=texts("temporal_order.figure.alt", points=points),
        caption=[texts("temporal_order.figure.caption", **facts), _rates(result, texts), *_findings(result, texts)],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
    )


def _share(count: int, runs: int) -> Cell:
    return Cell(count / runs, f"{count}/{runs}")


def _losses(row: Row, key: str) -> Cell:
    losses = row[f"{key}_loss"]
    if losses is None:
        return Cell(None, units.MISSING)
    return cells.spread_cell(dict(enumerate(map(float, losses))), units.number_text)


def table(result: Result, texts: Texts) -> Table:
    """A row for each kind."""
    columns = [
        Column("kind", texts("temporal_order.column.kind"), numeric=False),
        Column("largest_norm", texts("temporal_order.column.largest_norm")),
        Column("diverged", texts("temporal_order.column.diverged")),
        Column("diverged_with", texts("temporal_order.column.diverged_with")),
        Column("clip_rate", texts("col.clipped")),
        Column("best_loss", texts("temporal_order.column.best_loss")),
        Column("best_rate", texts("temporal_order.column.best_rate")),
        Column("best_with_loss", texts("temporal_order.column.best_with_loss")),
        Column("best_with_rate", texts("temporal_order.column.best_with_rate")),
    ]
    rows = [
        [
            Cell(row["kind"], texts(KINDS[row["kind"]])),
            Cell(row["largest_norm"], units.number_text(row["largest_norm"])),
            _share(row["diverged"], row["runs"]),
            _share(row["diverged_with"], row["runs"]),
            Cell(row["clip_rate"], units.percent_text(row["clip_rate"])),
            _losses(row, "best"),
            cells.optional_cell(row["best_rate"], lambda rate: f"{rate:g}"),
            _losses(row, "best_with"),
            cells.optional_cell(row["best_with_rate"], lambda rate: f"{rate:g}"),
        ]
        for row in result.table
    ]
    facts = {
        "rates": texts.join([f"{rate:g}" for rate in result.settings["kind_rates"]]),
        "seeds": result.settings["kind_seeds"],
        "steps": result.settings["kind_steps"],
        "max_norm": f"{result.settings['max_norm']:g}",
        "batch": result.settings["kind_batch"],
    }
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.temporal_order.table"),
        caption=[texts("temporal_order.table.caption", **facts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[texts("temporal_order.table.note"), *notes(result, texts)],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=1, content=content)
