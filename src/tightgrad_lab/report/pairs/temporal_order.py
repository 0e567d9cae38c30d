"""Temporal order with and without clipping, and the kinds of networks on real data."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.book import study_facts
from tightgrad_lab.report.claims.clipping import temporal_order
from tightgrad_lab.report.claims.judgement import Number
from tightgrad_lab.report.claims.words import formatted
from tightgrad_lab.report.drawing import figures, recurrent
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.clipping import LearnedRun, TemporalOrderFigure, TemporalOrderRow

NAME = "temporal_order"
Result = ResultOf[TemporalOrderFigure, TemporalOrderRow]
KINDS = {
    "rnn": "temporal_order.figure.rnn",
    "lstm": "temporal_order.figure.lstm",
    "transformer": "temporal_order.table.transformer",
    "cnn": "temporal_order.table.cnn",
}
"""The kinds of networks, and the keys of their names."""
PANELS = {
    "cliff": ("temporal_order.figure.cliff", "temporal_order.figure.cliff.x"),
    "backward": ("temporal_order.figure.backward", "temporal_order.figure.backward.x"),
}
"""The computed panels, and the keys of their heading and of their axis."""
Row = LearnedRun


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


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """A step over a cliff, gradients on their way back, and which runs learned the task."""
    narrow = layout is NARROW
    kinds = _kinds(result)
    panels = [name for name in PANELS if name in result.figure]
    left, right, head, panel, foot = 0.55, 0.85, 0.5, 1.75, 0.5
    across = 1 if narrow else 2
    rows = {
        kind: len(recurrent.row_keys([run for run in result.figure["runs"] if run["kind"] == kind])) for kind in kinds
    }
    tall = {kind: 0.6 + 0.22 * count + 0.09 * (count // 2) for kind, count in rows.items()}
    lower = sum(tall.values()) + 0.12 * len(kinds) if narrow else max(tall.values())
    upper = -(-len(panels) // across) * (head + panel + foot)
    figure = figures.canvas(layout.width, upper + lower + 0.32)
    height = figure.get_figheight()
    width = layout.width / across - left - (0.75 if narrow else right)
    for place, name in enumerate(panels):
        row, column = divmod(place, across)
        x, y = left + column * layout.width / across, height - (row + 1) * (head + panel + foot) + foot
        axes = figures.inch_axes(figure, x, y, width + (0.45 if name == "cliff" else 0), panel)
        heading, below = (texts(key) for key in PANELS[name])
        if name == "cliff":
            recurrent.cliff(axes, result.figure["cliff"], texts)
        else:
            recurrent.backward(axes, result.figure["backward"], texts)
        figures.inch_text(figure, x - left + 0.1, y + panel + 0.24, heading, figures.SIZE_SMALL, va="center")
        style = {"color": figures.MUTED, "ha": "center", "va": "center"}
        figures.inch_text(figure, x + width / 2, y - 0.33, below, figures.SIZE_SMALL, **style)
    y = height - upper
    for place, kind in enumerate(kinds):
        lengths = [len(_lengths(result, one)) + 1 for one in kinds]
        share = 1.0 if narrow else lengths[place] / sum(lengths)
        x = 0.1 if narrow or place == 0 else 0.1 + layout.width * sum(lengths[:place]) / sum(lengths)
        heading = texts("temporal_order.figure.learned", kind=texts(KINDS[kind])) if place == 0 else texts(KINDS[kind])
        gid = figures.PART if place == 0 else None
        figures.inch_text(figure, x, y - 0.2, heading, figures.SIZE_SMALL, va="center", gid=gid)
        recurrent.learned(figure, result.figure["runs"], kind, (x, y - 0.46, layout.width * share - 0.3), texts)
        if narrow:
            y -= tall[kind] + 0.12
    figures.inch_text(
        figure, 0.1, 0.16, texts("temporal_order.figure.marks"), figures.SIZE_SMALL, color=figures.MUTED, va="center"
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


def _shows(result: Result, texts: Texts) -> str:
    """What the three parts say, as this result has it; empty for the general sentence."""
    order = temporal_order(result)
    if order is None or not PANELS.keys() <= result.figure.keys():
        return ""
    facts = dict(study_facts.cliff(result)[1]) | dict(study_facts.carousel(result)[1]) | dict(order.facts)
    return texts(
        "temporal_order.figure.shows",
        **{name: formatted(fact.value, fact.unit, texts) for name, fact in facts.items() if isinstance(fact, Number)},
    )


def figure(result: Result, texts: Texts) -> FigureSpec:
    """The temporal-order task."""
    cliff = result.figure.get("cliff", {})
    facts = {
        "steps": units.count_text(result.settings["steps"]),
        "batch": result.settings["batch_size"],
        "hidden": result.settings["hidden"],
        "max_norm": f"{result.settings['max_norm']:g}",
        "seeds": result.settings["seeds"],
        "tests": units.count_text(result.settings["test_sequences"]),
        "unit_steps": cliff.get("steps", units.MISSING),
        "unit_rate": cliff.get("rate", units.MISSING),
        "unit_norm": cliff.get("max_norm", units.MISSING),
    }
    points = "; ".join(_in_words(result, kind, texts) for kind in _kinds(result))
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.temporal_order.figure"),
        alt=texts("temporal_order.figure.alt", points=points),
        caption=[texts("temporal_order.figure.caption", **facts), *_findings(result, texts)],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
        shows=_shows(result, texts),
    )


def _share(count: int, runs: int) -> Cell:
    return Cell(count / runs, f"{count}/{runs}")


def _losses(losses: list[float] | None) -> Cell:
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
            _losses(row["best_loss"]),
            cells.optional_cell(row["best_rate"], lambda rate: f"{rate:g}"),
            _losses(row["best_with_loss"]),
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
