"""Growing batches, and what the learning rate has to do about them."""

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.measured.stats import Comparison, compare
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.pairs import studies
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.accumulation import LargeBatchesFigure, LargeBatchesRow

NAME = "large_batches"
Result = ResultOf[LargeBatchesFigure, LargeBatchesRow]
RULES = {
    "none": "large_batches.figure.rule.none",
    "sqrt": "large_batches.figure.rule.sqrt",
    "linear": "large_batches.figure.rule.linear",
    "linear_constant": "large_batches.figure.rule.linear_constant",
    "linear_gradual": "large_batches.figure.rule.linear_gradual",
    "lars": "large_batches.figure.rule.lars",
    "lamb": "large_batches.figure.rule.lamb",
}
"""The rules, in the order in which they are shown, and the keys of their names."""
WARMUPS = ("linear", "linear_constant", "linear_gradual")
GOYAL = ["linear_gradual", "linear", "linear_constant"]
"""Best first, in Goyal et al. 2017, table 1."""
_TICKS = (0.03, 0.1, 0.3, 1.0, 3.0)


def _accuracy(row: LargeBatchesRow) -> dict[int, float]:
    return dict(enumerate(map(float, row["accuracy"])))


def _base(result: Result) -> LargeBatchesRow:
    batch = result.figure["base_batch"]
    return next(row for row in result.table if row["batch"] == batch and row["rule"] == "none")


def against_base(result: Result, row: LargeBatchesRow) -> Comparison | None:
    """A row against plain SGD at the smallest batch; None for that itself."""
    base = _base(result)
    if row is base:
        return None
    return compare(_accuracy(row), _accuracy(base), samples=int(result.figure["test_samples"]))


def _batches(result: Result) -> list[int]:
    return sorted({int(row["batch"]) for row in result.table} - {int(result.figure["base_batch"])})


def _row(result: Result, batch: int, rule: str) -> LargeBatchesRow:
    return next(row for row in result.table if (row["batch"], row["rule"]) == (batch, rule))


def _mean_curve(result: Result, batch: int, rule: str) -> tuple[list[float], list[float], list[float]]:
    """Mean, lowest and highest loss after each epoch, up to the first that some seed did not finish."""
    curves = [c["losses"] for c in result.figure["curves"] if (c["batch"], c["rule"]) == (batch, rule)]
    together = []
    for losses in zip(*curves, strict=True):
        if any(loss is None for loss in losses):
            break
        together.append(losses)
    return [fmean(x) for x in together], [min(x) for x in together], [max(x) for x in together]


def _curve(axes: Axes, result: Result, batch: int, rule: str, style: Mapping[str, Any]) -> None:
    mean, low, high = _mean_curve(result, batch, rule)
    samples = [float(result.figure["train_samples"]) * (epoch + 1) / 1000 for epoch in range(len(mean))]
    axes.plot(samples, mean, **style)
    if low != high:
        axes.fill_between(samples, low, high, color=style["color"], alpha=0.13, linewidth=0)
    if len(mean) < int(result.settings["epochs"]) and mean:
        axes.plot(samples[-1:], mean[-1:], "x", color=style["color"], markersize=6)


def _styles(result: Result) -> dict[int, dict[str, Any]]:
    """The larger the batch, the darker and wider its line; the smallest is grey and dashed."""
    batches = _batches(result)
    styles: dict[int, dict[str, Any]] = {
        int(result.figure["base_batch"]): {"color": figures.MUTED, "linewidth": 1.1, "linestyle": (0, (3, 2))}
    }
    for i, batch in enumerate(batches):
        strength = (i + 1) / len(batches)
        styles[batch] = {
            "color": figures.COLORS["accumulate"],
            "alpha": 0.25 + 0.75 * strength,
            "linewidth": 0.9 + 1.2 * strength,
        }
    return styles


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """A panel for each rule, a line for each batch."""
    columns = 2 if layout is NARROW else 4
    rows = math.ceil((len(RULES) + 1) / columns)
    left, right, top, bottom, gap, head, panel = 0.5, 0.12, 0.3, 0.5, 0.2, 0.3, 1.22
    width = (layout.width - left - right - (columns - 1) * gap) / columns
    height = top + rows * (head + panel) + bottom
    figure = figures.canvas(layout.width, height)
    styles = _styles(result)
    base = int(result.figure["base_batch"])
    losses = [loss for c in result.figure["curves"] for loss in c["losses"] if loss is not None]
    last = float(result.figure["train_samples"]) * int(result.settings["epochs"]) / 1000
    for place, rule in enumerate(RULES):
        row, column = divmod(place, columns)
        x, y = left + column * (width + gap), height - top - (row + 1) * (head + panel)
        axes = figures.inch_axes(figure, x, y, width, panel)
        axes.set_yscale("log")
        axes.set_ylim(min(losses) * 0.8, max(losses) * 1.25)
        axes.set_xlim(0, last * 1.02)
        for batch, style in styles.items():
            own = rule if batch != base or rule in ("lars", "lamb") else "none"
            _curve(axes, result, batch, own, style)
        ticks = [tick for tick in _TICKS if min(losses) * 0.8 <= tick <= max(losses) * 1.25]
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_yticklabels([f"{tick:g}" for tick in ticks])
        axes.xaxis.set_major_locator(FixedLocator([0, last / 2, last]))
        axes.set_xticklabels([f"{tick:g}" for tick in (0, last / 2, last)])
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=4, labelleft=column == 0, labelbottom=place + columns >= len(RULES))
        figures.inch_text(figure, x, y + panel + 0.1, texts(RULES[rule]), figures.SIZE_SMALL)
    _legend(figure, styles, base, texts, (left, width, gap, columns, height - top, head, panel))
    figures.inch_text(
        figure,
        0.1,
        height - 0.17,
        texts("large_batches.figure.y"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        va="center",
    )
    middle = layout.width / 2
    figures.inch_text(
        figure,
        middle,
        0.13,
        texts("large_batches.figure.x"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        ha="center",
        va="center",
    )
    if "equal" in result.figure:
        _equal(figure, result.figure["equal"], texts, layout)
    return figure


def _equal(figure: Figure, data: Mapping[str, Any], texts: Texts, layout: Layout) -> None:
    """Above what is drawn: the loss of each step, of the batch in one piece and accumulated."""
    left, panel, room = 0.5, 1.25, 2.6
    figures.with_room_above(figure, room)
    top = figure.get_figheight()
    axes = figures.inch_axes(figure, left, top - 0.62 - panel, layout.width - left - 0.12, panel)
    steps = range(1, len(data["whole"]) + 1)
    axes.plot(steps, data["whole"], color=figures.LINK, linewidth=3.25)
    axes.plot(steps, data["accumulated"], color=figures.COLORS["accumulate"], linewidth=0.9)
    axes.set_xlim(0, len(steps))
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high])
    axes.set_xticks([0, len(steps) // 2, len(steps)])
    axes.grid(True, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0, pad=4)
    size = data["batch"] // data["micro_batches"]
    facts = {"batch": data["batch"], "count": data["micro_batches"], "size": size}
    figures.inch_text(figure, 0.1, top - 0.17, texts("large_batches.figure.equal"), figures.SIZE_SMALL, va="center")
    x = 0.1
    for key, color, width in (
        ("large_batches.figure.whole", figures.LINK, 3.25),
        ("large_batches.figure.accumulated", figures.COLORS["accumulate"], 0.9),
    ):
        figures.inch_line(figure, (x, x + 0.3), (top - 0.42, top - 0.42), color=color, linewidth=width)
        name = texts(key, **facts)
        figures.inch_text(figure, x + 0.38, top - 0.42, name, figures.SIZE_SMALL, va="center")
        x += 0.38 + figures.text_size(figure, name, figures.SIZE_SMALL)[0] + 0.25
    style = {"color": figures.MUTED, "ha": "center", "va": "center"}
    below = top - 0.62 - panel - 0.33
    figures.inch_text(figure, layout.width / 2, below, texts("large_batches.figure.step"), figures.SIZE_SMALL, **style)
    figures.inch_text(
        figure,
        0.1,
        below - 0.27,
        texts("large_batches.figure.rules"),
        figures.SIZE_SMALL,
        va="center",
        gid=figures.PART,
    )


def _apart(result: Result, texts: Texts) -> list[str]:
    """How far the two ways of the same batch are apart, in float64 and in float32."""
    data = result.figure.get("equal")
    if data is None:
        return []
    double, single = (units.number_text(data[key]) for key in ("largest_difference", "largest_difference_float32"))
    facts = {"batch": data["batch"], "rate": data["rate"], "double": double, "single": single}
    return [texts("large_batches.figure.apart", **facts)]


def _legend(
    figure: Figure,
    styles: Mapping[int, Mapping[str, Any]],
    base: int,
    texts: Texts,
    grid: tuple[float, float, float, int, float, float, float],
) -> None:
    """In the place behind the last panel."""
    left, width, gap, columns, top, head, panel = grid
    row, column = divmod(len(RULES), columns)
    x = left + column * (width + gap) + 0.05
    y = top - row * (head + panel) - head
    for i, (batch, style) in enumerate(styles.items()):
        level = y - 0.08 - 0.2 * i
        figures.inch_line(figure, (x, x + 0.3), (level, level), **style)
        label = texts("large_batches.figure.base" if batch == base else "large_batches.figure.batch", batch=batch)
        figures.inch_text(figure, x + 0.38, level, label, figures.SIZE_SMALL, va="center")


def _ranking(result: Result, batch: int, rules: Iterable[str]) -> list[str]:
    return sorted(rules, key=lambda rule: -fmean(_row(result, batch, rule)["accuracy"]))


def _in_words(result: Result, batch: int, rules: Iterable[str], texts: Texts) -> str:
    values = {rule: units.percent_text(fmean(_row(result, batch, rule)["accuracy"])) for rule in rules}
    return texts.join([f"{texts(f'large_batches.figure.rule.{rule}')} {value}" for rule, value in values.items()])


def _findings(result: Result, texts: Texts) -> list[str | Markup]:
    """What the runs at the largest batch say about the rules, and about the comparison of Goyal et al."""
    found: list[str | Markup] = []
    base = fmean(_base(result)["accuracy"])
    largest = _batches(result)[-1]
    found.append(
        texts(
            "large_batches.figure.ranking",
            batch=largest,
            base_batch=result.figure["base_batch"],
            base=units.percent_text(base),
            ranking=_in_words(result, largest, _ranking(result, largest, RULES), texts),
        )
    )
    order = _ranking(result, largest, WARMUPS)
    same = texts("large_batches.figure.goyal.same" if order == GOYAL else "large_batches.figure.goyal.other")
    verdict = against_base(result, _row(result, largest, "linear_gradual"))
    short = verdict is not None and verdict.verdict == "short"
    steps = units.count_text(_row(result, largest, "linear_gradual")["steps"])
    reached = texts("large_batches.figure.goyal.short" if short else "large_batches.figure.goyal.reached", steps=steps)
    ranked = _in_words(result, largest, order, texts)
    found.append(texts("large_batches.figure.goyal", batch=largest, order=ranked, same=same, reached=reached))
    gain = compare(
        _accuracy(_row(result, largest, "linear_gradual")),
        _accuracy(_row(result, largest, "linear")),
        samples=int(result.figure["test_samples"]),
    )
    noise = units.MISSING if gain.noise is None else units.points_text(gain.noise).lstrip("+")
    found.append(texts("large_batches.figure.gain", gain=units.points_text(gain.difference), noise=noise))
    return found


def _shows(result: Result, texts: Texts) -> str:
    """How far the two ways of one batch are apart, and what the rules reach at the largest."""
    largest, data = _batches(result)[-1], result.figure.get("equal")
    order = _ranking(result, largest, RULES)
    ends = {"best": order[0], "worst": order[-1]}
    reached = {key: fmean(_row(result, largest, rule)["accuracy"]) for key, rule in ends.items()}
    rules = texts(
        "large_batches.figure.shows.rules",
        batch=largest,
        **{key: texts(RULES[rule]) for key, rule in ends.items()},
        **{f"{key}_value": units.percent_text(value) for key, value in reached.items()},
        base_batch=result.figure["base_batch"],
        base=units.percent_text(fmean(_base(result)["accuracy"])),
    )
    if data is None:
        return rules
    equal = texts(
        "large_batches.figure.shows.equal",
        batch=data["batch"],
        count=data["micro_batches"],
        size=data["batch"] // data["micro_batches"],
        double=units.number_text(data["largest_difference"]),
    )
    return equal + ("" if texts.language == "zh" else " ") + rules


def figure(result: Result, texts: Texts) -> FigureSpec:
    """Loss against samples."""
    base, base_batch = units.percent_text(fmean(_base(result)["accuracy"])), result.figure["base_batch"]
    points = [
        f"{texts('large_batches.figure.batch', batch=batch)}: {_in_words(result, batch, RULES, texts)}"
        for batch in _batches(result)
    ]
    facts = {"base_batch": base_batch, "warmup": result.figure["warmup_epochs"], "epochs": result.settings["epochs"]}
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.large_batches.figure"),
        alt=texts("large_batches.figure.alt", base_batch=base_batch, base=base, points="; ".join(points)),
        caption=[texts("large_batches.figure.caption", **facts), *_apart(result, texts), *_findings(result, texts)],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
        shows=_shows(result, texts),
    )


def _verdict_cell(found: Comparison | None, texts: Texts) -> Cell:
    key = found.verdict if found else "base"
    return Cell(key, Markup('<span class="verdict {}">{}</span>').format(key, texts(f"compare.{key}")))


def _difference_cell(found: Comparison | None) -> Cell:
    if found is None:
        return Cell(None, units.MISSING)
    margin = "" if found.noise is None else units.points_text(found.noise).lstrip("+")
    return Cell(found.difference, units.points_text(found.difference), margin=margin)


def table(result: Result, texts: Texts) -> Table:
    """A row for each batch and rule."""
    columns = [
        Column("batch", texts("large_batches.column.batch")),
        Column("rule", texts("large_batches.column.rule"), numeric=False),
        Column("learning_rate", texts("large_batches.column.learning_rate")),
        Column("steps", texts("large_batches.column.steps")),
        Column("accuracy", texts("col.metric", metric=texts.metric("accuracy"))),
        Column("difference", texts("large_batches.column.difference", batch=result.figure["base_batch"])),
        Column("verdict", texts("col.verdict"), numeric=False),
        Column("loss", texts("col.train_loss")),
        Column("diverged", texts("large_batches.column.diverged"), shown=False),
    ]
    rows = []
    for row in sorted(result.table, key=lambda one: (one["batch"], list(RULES).index(one["rule"]))):
        found = against_base(result, row)
        losses = [float(loss) for loss in row["loss"] if loss is not None]
        rows.append(
            [
                Cell(row["batch"], units.count_text(row["batch"])),
                Cell(row["rule"], texts(RULES[row["rule"]])),
                Cell(row["learning_rate"], units.number_text(row["learning_rate"])),
                Cell(row["steps"], units.count_text(row["steps"])),
                cells.spread_cell(_accuracy(row), units.percent_text),
                _difference_cell(found),
                _verdict_cell(found, texts),
                cells.spread_cell(dict(enumerate(losses)), units.number_text)
                if len(losses) == len(row["loss"])
                else Cell(None, texts("large_batches.table.diverged")),
                Cell(row["diverged"], str(row["diverged"])),
            ]
        )
    seeds = int(result.settings["seeds"])
    caption = [
        texts("large_batches.table.caption"),
        texts("large_batches.table.seeds.many" if seeds > 1 else "large_batches.table.seeds.one", count=seeds),
    ]
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.large_batches.table"),
        caption=list(caption),
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[_rates(result, texts), *notes(result, texts)],
    )


def _rates(result: Result, texts: Texts) -> str:
    rates = texts.join([f"{name.upper()} {rate:g}" for name, rate in result.figure["rates"].items()])
    key = "large_batches.table.tuned" if result.figure["tuning"] else "large_batches.table.taken"
    return texts(key, batch=result.figure["base_batch"], rates=rates)


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return (
        None
        if result is None
        else Content([figure(result, texts), table(result, texts), *studies.tables(NAME, runs, texts)])
    )


PAIR = measured_pair(NAME, chapter=5, content=content)
