"""Accuracy against compression, with and without error feedback."""

from collections.abc import Sequence
from statistics import fmean

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.drawing import figures, joined
from tightgrad_lab.report.drawing.callouts import spread_out
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.measured.stats import Comparison, compare, spread
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.compression import AccuracyVsBytesFigure, AccuracyVsBytesRow

NAME = "accuracy_vs_bytes"
Result = ResultOf[AccuracyVsBytesFigure, AccuracyVsBytesRow]
METHODS = {
    "dense": "accuracy_vs_bytes.figure.dense",
    "float16": "accuracy_vs_bytes.figure.float16",
    "int8": "accuracy_vs_bytes.figure.int8",
    "int4": "accuracy_vs_bytes.figure.int4",
    "int2": "accuracy_vs_bytes.figure.int2",
    "qsgd": "accuracy_vs_bytes.figure.qsgd",
    "terngrad": "accuracy_vs_bytes.figure.terngrad",
    "sign": "accuracy_vs_bytes.figure.sign",
    "prune_10": "accuracy_vs_bytes.figure.prune_10",
    "topk_10": "accuracy_vs_bytes.figure.topk_10",
    "topk_1": "accuracy_vs_bytes.figure.topk_1",
    "topk_01": "accuracy_vs_bytes.figure.topk_01",
    "randomk_1": "accuracy_vs_bytes.figure.randomk_1",
    "dgc_01": "accuracy_vs_bytes.figure.dgc_01",
    "powersgd_4": "accuracy_vs_bytes.figure.powersgd_4",
}
"""The methods, in the order of the table, and the keys of their names."""
FEEDBACKS = {
    "none": "accuracy_vs_bytes.table.none",
    "error_feedback": "accuracy_vs_bytes.table.error_feedback",
    "momentum_correction": "accuracy_vs_bytes.table.momentum_correction",
}
FAMILIES = {
    "dense": "accuracy_vs_bytes.table.family.dense",
    "quantise": "accuracy_vs_bytes.table.family.quantise",
    "prune": "accuracy_vs_bytes.table.family.prune",
    "sparsify": "accuracy_vs_bytes.table.family.sparsify",
    "low_rank": "accuracy_vs_bytes.table.family.low_rank",
}
CLAIMED = (("dgc_01", "momentum_correction"), ("int4", "error_feedback"))
"""What is expected to be as good as dense."""
Row = AccuracyVsBytesRow


def _values(values: Sequence[float | None]) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values) if value is not None}


def _find(result: Result, method: str, feedback: str) -> Row | None:
    return next((row for row in result.table if (row["method"], row["feedback"]) == (method, feedback)), None)


def _dense(result: Result) -> Row:
    return next(row for row in result.table if row["method"] == "dense")


def against_dense(result: Result, row: Row) -> Comparison | None:
    """A row against the dense runs of the same seeds; None for these, and for runs that diverged."""
    if row["method"] == "dense" or not row["accuracy"] or row["diverged"]:
        return None
    return compare(
        _values(row["accuracy"]), _values(_dense(result)["accuracy"]), samples=int(result.figure["test_samples"])
    )


def _name(row: Row, texts: Texts) -> str:
    return texts(METHODS[row["method"]])


def _groups(result: Result) -> list[list[Row]]:
    """The rows of each method but the dense one, by ascending compression factor."""
    groups: dict[str, list[Row]] = {}
    for row in result.table:
        if row["method"] != "dense" and row["accuracy"]:
            groups.setdefault(row["method"], []).append(row)
    return sorted(groups.values(), key=lambda rows: fmean(rows[0]["compression_factor"]))


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """Accuracy to the right, compression upwards; a line joins a method without and with feedback."""
    narrow = layout is NARROW
    groups = _groups(result)
    left, bottom, head = 0.55, 0.52, 0.62
    margin = 1.42 if narrow else 2.1
    height = max(3.6, 0.23 * len(groups) + 1.2) + (0.2 if narrow else 0.0)
    figure = figures.canvas(layout.width, height)
    width, tall = layout.width - left - margin, height - bottom - head
    axes = figures.inch_axes(figure, left, bottom, width, tall)
    _scales(axes, result, groups, narrow)
    dense = spread(list(_values(_dense(result)["accuracy"]).values()))
    reach = dense.sd or 0.0
    axes.axvspan(dense.mean - reach, dense.mean + reach, facecolor=figures.BAND, edgecolor="none", zorder=0)
    axes.axvline(dense.mean, color=figures.MUTED, linewidth=1.0, linestyle=(0, (3, 2)), zorder=1)
    targets = []
    for rows in groups:
        for row in rows:
            _point(axes, row)
        ends = [(fmean(row["accuracy"]), fmean(row["compression_factor"])) for row in rows]
        axes.plot([x for x, _ in ends], [y for _, y in ends], color=figures.LINK, linewidth=1.2, zorder=1)
        farthest = max(max(row["accuracy"]) for row in rows)
        targets.append((farthest, max(ends)[1]))
    _labels(figure, axes, groups, targets, texts, (left + width + 0.1, bottom, bottom + tall), narrow)
    _legend(figure, texts, layout, height)
    where = axes.transData.transform((dense.mean, axes.get_ylim()[1]))[0] / figure.dpi
    label = f"{texts('accuracy_vs_bytes.figure.dense')} {units.percent_text(dense.mean)}"
    figures.inch_text(
        figure, where, bottom + tall + 0.05, label, figures.SIZE_SMALL, color=figures.MUTED, ha="center", va="bottom"
    )
    if "feedback" in result.figure:
        keys = METHODS | FEEDBACKS | {"none": "accuracy_vs_bytes.figure.without"}
        names = {name: texts(key) for name, key in keys.items()}
        joined.draw(figure, result.figure["feedback"], names, texts, layout)
    return figure


def _scales(axes: Axes, result: Result, groups: list[list[Row]], narrow: bool) -> None:
    everything = [value for row in result.table for value in row["accuracy"]]
    low, high = min(everything), max(everything)
    room = 0.06 * max(high - low, 0.02)
    axes.set_xlim(low - room, high + room)
    factors = [fmean(row["compression_factor"]) for rows in groups for row in rows]
    axes.set_yscale("log")
    axes.set_ylim(min(factors) / 1.5, max(factors) * 1.5)
    ticks = [
        tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if min(factors) / 1.5 <= tick <= max(factors) * 1.5
    ]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticklabels([f"{tick:g}×" for tick in ticks])
    axes.xaxis.set_major_locator(MaxNLocator(3 if narrow else 6))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=f"{units.NBSP}%"))
    axes.grid(True, axis="y", zorder=0)
    axes.tick_params(length=0, pad=5)
    axes.spines["left"].set_visible(False)


def _point(axes: Axes, row: Row) -> None:
    found, factor = spread(list(_values(row["accuracy"]).values())), fmean(row["compression_factor"])
    fed = row["feedback"] != "none"
    color = figures.COLORS["compress"] if fed else figures.MUTED
    if found.sd:
        axes.plot([found.low, found.high], [factor] * 2, color=color, linewidth=0.8, zorder=2)
    face = color if fed else figures.PAPER
    axes.plot([found.mean], [factor], "o", color=color, markerfacecolor=face, markersize=5.5, zorder=3)


def _labels(
    figure: Figure,
    axes: Axes,
    groups: list[list[Row]],
    targets: list[tuple[float, float]],
    texts: Texts,
    column: tuple[float, float, float],
    narrow: bool,
) -> None:
    x, low, high = column
    spots = [axes.transData.transform(target) / figure.dpi for target in targets]
    order = sorted(range(len(groups)), key=lambda i: float(spots[i][1]))
    middles = spread_out([float(spots[i][1]) for i in order], [0.15] * len(order), low, high)
    for i, middle in zip(order, middles, strict=True):
        factor = units.factor_text(fmean(groups[i][0]["compression_factor"]))
        label = _name(groups[i][0], texts)
        text = label if narrow else f"{label}  {factor}"
        figures.inch_line(
            figure,
            (float(spots[i][0]) + 0.07, x),
            (float(spots[i][1]), middle),
            color=figures.LINK,
            linewidth=0.8,
            linestyle=(0, (1, 2)),
        )
        figures.inch_text(figure, x + 0.04, middle, text, figures.SIZE_SMALL, va="center")


def _legend(figure: Figure, texts: Texts, layout: Layout, height: float) -> None:
    figures.inch_text(
        figure,
        0.1,
        height - 0.16,
        texts("accuracy_vs_bytes.figure.y"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        va="center",
    )
    x, y = 0.1, 0.14
    for fed, key in ((True, "accuracy_vs_bytes.figure.with"), (False, "accuracy_vs_bytes.figure.without")):
        color = figures.COLORS["compress"] if fed else figures.MUTED
        figures.inch_line(
            figure,
            [x + 0.05],
            [y],
            marker="o",
            color=color,
            markerfacecolor=color if fed else figures.PAPER,
            markersize=5.5,
            linestyle="none",
        )
        figures.inch_text(figure, x + 0.15, y, texts(key), figures.SIZE_SMALL, va="center")
        x += 0.15 + figures.text_size(figure, texts(key), figures.SIZE_SMALL)[0] + 0.2
    right = layout.width - 0.1
    figures.inch_text(
        figure,
        right,
        y,
        texts("accuracy_vs_bytes.figure.x"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        va="center",
        ha="right",
    )


def _difference(found: Comparison) -> str:
    noise = "" if found.noise is None else f" ± {units.points_text(found.noise).lstrip('+')}"
    return units.points_text(found.difference) + noise


def _findings(result: Result, texts: Texts) -> list[str | Markup]:
    """What became of the claims, and what feedback is worth."""
    said: list[str | Markup] = []
    for method, feedback in CLAIMED:
        row = _find(result, method, feedback)
        found = against_dense(result, row) if row else None
        if row is None or found is None:
            continue
        said.append(
            texts(
                "accuracy_vs_bytes.figure.claim",
                method=_name(row, texts),
                feedback=texts(FEEDBACKS[feedback]),
                factor=units.factor_text(fmean(row["compression_factor"])),
                last=units.factor_text(fmean(row["last_step_factor"])),
                difference=_difference(found),
                verdict=texts(f"compare.{found.verdict}"),
            )
        )
    pairs = []
    for rows in _groups(result):
        by_feedback = {row["feedback"]: row for row in rows}
        if {"none", "error_feedback"} <= by_feedback.keys():
            gain = fmean(by_feedback["error_feedback"]["accuracy"]) - fmean(by_feedback["none"]["accuracy"])
            pairs.append(f"{_name(rows[0], texts)} {units.points_text(gain)}")
    if pairs:
        said.append(texts("accuracy_vs_bytes.figure.gains", gains=texts.join(pairs)))
    return said


def _compared(result: Result, texts: Texts) -> list[str]:
    """How the methods were compared without feedback and with it; nothing if they were not."""
    rows = result.figure.get("feedback")
    if not rows:
        return []
    rates = [f"{rate:g}" for rate in result.settings["compared_rates"]]
    key = "accuracy_vs_bytes.figure.rates" if len(rates) > 1 else "accuracy_vs_bytes.figure.rate"
    facts = {
        "count": len({row["method"] for row in rows}) - 1,
        "seeds": len(rows[0]["accuracy"]),
        "rates": texts(key, rates=texts.join(rates)),
    }
    return [texts("accuracy_vs_bytes.figure.compared", **facts)]


def figure(result: Result, texts: Texts) -> FigureSpec:
    """Accuracy against compression."""
    points = [
        texts(
            "accuracy_vs_bytes.figure.point",
            method=_name(row, texts),
            feedback=texts(FEEDBACKS[row["feedback"]]),
            factor=units.factor_text(fmean(row["compression_factor"])),
            accuracy=units.percent_text(fmean(row["accuracy"])),
        )
        for row in result.table
        if row["accuracy"]
    ]
    facts = {
        "ranks": result.settings["ranks"],
        "epochs": result.settings["epochs"],
        "steps": units.count_text(result.figure["steps"]),
    }
    shows, found = joined.shows(result.figure.get("feedback") or (), METHODS, texts), _findings(result, texts)
    if shows and found:
        shows = texts("accuracy_vs_bytes.figure.shows.case", shows=shows, found=found[0])
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.accuracy_vs_bytes.figure"),
        alt=texts("accuracy_vs_bytes.figure.alt", points=" ".join(points)),
        caption=[*_compared(result, texts), texts("accuracy_vs_bytes.figure.caption", **facts), *found],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
        shows=shows,
    )


def _spread_or_none(values: Sequence[float | None], form: cells.Format) -> Cell:
    found = _values(values)
    return cells.spread_cell(found, form) if found else Cell(None, units.MISSING)


def table(result: Result, texts: Texts) -> Table:
    """A row for each method and feedback."""
    columns = [
        Column("family", texts("accuracy_vs_bytes.column.family"), numeric=False),
        Column("method", texts("accuracy_vs_bytes.column.method"), numeric=False),
        Column("feedback", texts("accuracy_vs_bytes.column.feedback"), numeric=False),
        Column("wire_bytes", texts("col.wire_bytes"), "B"),
        Column("compression_factor", texts("col.compression_factor")),
        Column("last_step_factor", texts("accuracy_vs_bytes.column.last_step_factor")),
        Column("accuracy", texts("col.metric", metric=texts.metric("accuracy"))),
        Column("difference", texts("accuracy_vs_bytes.column.difference")),
        Column("verdict", texts("col.verdict"), numeric=False),
        Column("loss", texts("col.train_loss")),
        Column("step_seconds", texts("col.step_seconds"), "s"),
        Column("seeds", texts("col.seeds"), shown=False),
    ]
    order, feedbacks = list(METHODS), list(FEEDBACKS)
    rows = []
    for row in sorted(result.table, key=lambda one: (order.index(one["method"]), feedbacks.index(one["feedback"]))):
        found = against_dense(result, row)
        verdict = "base" if row["method"] == "dense" else found.verdict if found else "unknown"
        difference = Cell(None, units.MISSING)
        if found is not None:
            margin = "" if found.noise is None else units.points_text(found.noise).lstrip("+")
            difference = Cell(found.difference, units.points_text(found.difference), margin=margin)
        accuracy = _spread_or_none(row["accuracy"], units.percent_text)
        if row["diverged"]:
            accuracy = Cell(None, texts("accuracy_vs_bytes.table.diverged", count=row["diverged"]))
        rows.append(
            [
                Cell(row["family"], texts(FAMILIES[row["family"]])),
                Cell(row["method"], _name(row, texts)),
                Cell(row["feedback"], texts(FEEDBACKS[row["feedback"]])),
                _spread_or_none(row["wire_bytes"], units.bytes_text),
                _spread_or_none(row["compression_factor"], units.factor_text),
                _spread_or_none(row["last_step_factor"], units.factor_text),
                accuracy,
                difference,
                Cell(
                    verdict, Markup('<span class="verdict {}">{}</span>').format(verdict, texts(f"compare.{verdict}"))
                ),
                _spread_or_none(row["loss"], units.number_text),
                _spread_or_none(row["step_seconds"], units.seconds_text),
                Cell(len(row["accuracy"]), str(len(row["accuracy"]))),
            ]
        )
    seeds = {len(row["accuracy"]) for row in result.table if not row["diverged"]}
    key = (
        "accuracy_vs_bytes.table.seeds.some"
        if len(seeds) > 1
        else "accuracy_vs_bytes.table.seeds.one"
        if seeds == {1}
        else "accuracy_vs_bytes.table.seeds.many"
    )
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.accuracy_vs_bytes.table"),
        caption=[texts("accuracy_vs_bytes.table.caption"), texts(key, least=min(seeds), most=max(seeds))],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[
            texts(
                "accuracy_vs_bytes.table.dgc",
                clip=f"{result.figure['dgc_local_clip']:g}",
                start=units.percent_text(result.figure["dgc_start_density"]),
                warmup=result.settings["density_warmup_epochs"],
                below=units.count_text(result.figure["dense_below"]),
            ),
            *notes(result, texts),
        ],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=6, content=content)
