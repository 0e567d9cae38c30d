"""Common problems, what the doctor says about them, and their cures."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.failures import CommonFailuresFigure, FailureCurve, FailurePanel, FailureRow

Result = ResultOf[CommonFailuresFigure, FailureRow]

NAME = "common_failures"
PROBLEMS = {
    "over_clipping": ("problem.over_clipping", "symptom.over_clipping", "cure14.over_clipping"),
    "idle_clipping": ("problem.idle_clipping", "symptom.idle_clipping", "cure14.idle_clipping"),
    "exploding_norms": ("problem.exploding_norms", "symptom.exploding_norms", "cure14.exploding_norms"),
    "graph_kept_alive": ("problem.graph_kept_alive", "symptom.graph_kept_alive", "cure14.graph_kept_alive"),
    "out_of_memory": ("problem.out_of_memory", "symptom.out_of_memory", "cure14.out_of_memory"),
    "precision_lost": ("problem.precision_lost", "symptom.precision_lost", "cure14.precision_lost"),
    "stale_warm_start": ("problem.stale_warm_start", "symptom.stale_warm_start", "cure14.stale_warm_start"),
    "rank_drift": ("problem.rank_drift", "symptom.rank_drift", "cure14.rank_drift"),
    "wrong_denominator": ("problem.wrong_denominator", "symptom.wrong_denominator", "cure14.wrong_denominator"),
}
"""The problems, and the keys of their names, symptoms and cures."""
COLORS = {
    "over_clipping": "clip",
    "graph_kept_alive": "accumulate",
    "out_of_memory": "accumulate",
    "precision_lost": "compress",
}
"""The panels, and the technique that each is about."""
METRICS: dict[str, tuple[Callable[[float], str], str]] = {
    "loss": (units.number_text, "metric14.loss"),
    "growth": (units.bytes_text, "metric14.growth"),
    "steps": (units.count_text, "metric14.steps"),
    "difference": (units.percent_text, "metric14.difference"),
    "gain": (units.factor_text, "metric14.gain"),
}
"""By what runs are judged: how it is written, and the key of its name."""
_BEFORE = {"color": figures.MUTED, "linewidth": 1.1, "linestyle": (0, (3, 2))}
_MIB = 2**20
Curve = FailureCurve


def _name(problem: str, texts: Texts) -> str:
    return texts(PROBLEMS[problem][0])


def _together(curves: Sequence[Curve], *, added: bool) -> tuple[list[int], list[tuple[float, ...]]]:
    """The values of all seeds at each step that every seed has; memory as what was added after a fifth of them.

    The table counts from there too: the first steps make the buffers that stay.
    """
    by_seed = [dict(zip(curve["steps"], curve["values"], strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(values) for values in by_seed)))
    if added:
        steps = steps[len(steps) // 5 :]
    first = [values[steps[0]] if added and steps else 0.0 for values in by_seed]
    scale = _MIB if added else 1.0
    return steps, [
        tuple((values[step] - base) / scale for values, base in zip(by_seed, first, strict=True)) for step in steps
    ]


def _fifth(panel: FailurePanel) -> int:
    """The step from which on added memory is counted, from 1."""
    steps = panel["runs"][0]["before"]["steps"]
    return int(steps[len(steps) // 5]) + 1


def _line(axes: Axes, curves: Sequence[Curve], style: Mapping[str, Any], *, added: bool) -> None:
    steps, values = _together(curves, added=added)
    if not steps:
        return
    means = [fmean(own) for own in values]
    axes.plot(steps, means, **style)
    if len(curves) > 1:
        low, high = [min(own) for own in values], [max(own) for own in values]
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.13, linewidth=0)
    if all(curve["ended"] for curve in curves):
        axes.plot(steps[-1:], means[-1:], "x", color=style["color"], markersize=7, markeredgewidth=1.6, zorder=5)


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """A panel for each failure: as it was, and as it is after the cure."""
    panels: list[FailurePanel] = list(result.figure["panels"])
    columns = 1 if layout is NARROW else 2
    rows = math.ceil(len(panels) / columns)
    left, right, top, bottom, gap, head, tall = 0.5, 0.14, 0.36, 0.42, 0.55, 0.52, 1.25
    between = 0.24
    width = (layout.width - left - right - (columns - 1) * gap) / columns
    height = top + rows * (head + tall) + (rows - 1) * between + bottom
    figure = figures.canvas(layout.width, height)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        x, y = left + column * (width + gap), height - top - row * (head + tall + between) - head - tall
        axes = figures.inch_axes(figure, x, y, width, tall)
        color = figures.COLORS[COLORS[panel["problem"]]]
        added = panel["field"] == "memory_bytes"
        _line(axes, [run["before"] for run in panel["runs"]], _BEFORE, added=added)
        _line(axes, [run["after"] for run in panel["runs"]], {"color": color, "linewidth": 1.5}, added=added)
        axes.set_xticks(_ticks(axes.get_xlim()))
        axes.set_yticks(_ticks(axes.get_ylim()))
        axes.grid(True, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0, pad=4)
        figures.inch_text(figure, x - 0.4, y + tall + 0.3, _name(panel["problem"], texts), figures.SIZE_LABEL)
        unit = (
            texts("common_failures.figure.memory", step=_fifth(panel))
            if added
            else texts("common_failures.figure.loss")
        )
        figures.inch_text(figure, x - 0.4, y + tall + 0.12, unit, figures.SIZE_SMALL, color=figures.MUTED)
    _legend(figure, texts, height - 0.14)
    middle = layout.width / 2
    figures.inch_text(
        figure,
        middle,
        0.13,
        texts("common_failures.figure.x"),
        figures.SIZE_SMALL,
        color=figures.MUTED,
        ha="center",
        va="center",
    )
    return figure


def _ticks(limits: tuple[float, float]) -> list[float]:
    low, high = limits
    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def _legend(figure: Figure, texts: Texts, y: float) -> None:
    x = 0.1
    after = {"color": figures.INK, "linewidth": 1.5}
    for style, key in ((_BEFORE, "common_failures.figure.before"), (after, "common_failures.figure.after")):
        figures.inch_line(figure, (x, x + 0.3), (y, y), **style)
        figures.inch_text(figure, x + 0.38, y, texts(key), figures.SIZE_SMALL, va="center")
        x += 0.38 + figures.text_size(figure, texts(key), figures.SIZE_SMALL)[0] + 0.25
    figures.inch_text(figure, x, y, f"×  {texts('common_failures.figure.ended')}", figures.SIZE_SMALL, va="center")


def _mean_text(row: FailureRow, when: Literal["before", "after"]) -> str:
    values = [float(value) for value in row[when] if value is not None]
    return METRICS[row["metric"]][0](fmean(values)) if values else units.MISSING


def _in_words(row: FailureRow, texts: Texts) -> str:
    return texts(
        "common_failures.figure.point",
        problem=_name(row["problem"], texts),
        metric=texts(METRICS[row["metric"]][1]),
        before=_mean_text(row, "before"),
        after=_mean_text(row, "after"),
    )


def figure(result: Result, texts: Texts) -> FigureSpec:
    """Four failures over the steps."""
    shown = {panel["problem"] for panel in result.figure["panels"]}
    points = [_in_words(row, texts) for row in result.table if row["problem"] in shown]
    space = "" if texts.language == "zh" else " "
    facts = {"steps": result.settings["steps"], "seeds": result.settings["seeds"]}
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.common_failures.figure"),
        alt=texts("common_failures.figure.alt", points=space.join(points)),
        caption=[texts("common_failures.figure.caption", **facts), _verdict(result, texts)],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
    )


def _verdict(result: Result, texts: Texts) -> str:
    seeds = int(result.settings["seeds"])
    return texts(
        "common_failures.figure.verdict",
        named=sum(row["named"] for row in result.table),
        cured=sum(row["cured"] for row in result.table),
        runs=seeds * len(result.table),
    )


def _change(row: FailureRow) -> str:
    """The parts of the plan that the cure changes, as JSON without what both have."""
    before, after = row["plan_before"], row["plan_after"]
    if after is None:
        return ""
    return ", ".join(f"{part}: {_short(after[part])}" for part in after if after[part] != before.get(part))


def _short(value: Any) -> str:
    """A method with the settings that say most."""
    if not isinstance(value, Mapping):
        return str(value)
    inner = [f"{key}={_short(own)}" for key, own in value.items() if key in _TELLING and own is not None]
    name = value.get("id")
    return f"{name}({', '.join(inner)})" if name else f"({', '.join(inner)})"


_TELLING = (
    "max_norm",
    "micro_batches",
    "source",
    "on_oom",
    "loss_reduction",
    "codec",
    "reducer",
    "feedback",
    "density",
    "approximation_rank",
)


def _spread(row: FailureRow, when: Literal["before", "after"], texts: Texts) -> Cell:
    values = {seed: float(value) for seed, value in enumerate(row[when]) if value is not None}
    if len(values) < len(row[when]):
        return Cell(None, texts("common_failures.table.diverged"))
    return cells.spread_cell(values, METRICS[row["metric"]][0])


def table(result: Result, texts: Texts) -> Table:
    """A row for each problem."""
    columns = [
        Column("problem", texts("common_failures.column.problem"), numeric=False),
        Column("symptom", texts("common_failures.column.symptom"), numeric=False),
        Column("says", texts("common_failures.column.says"), numeric=False),
        Column("cure", texts("common_failures.column.cure"), numeric=False),
        Column("metric", texts("common_failures.column.metric"), numeric=False),
        Column("before", texts("common_failures.column.before")),
        Column("after", texts("common_failures.column.after")),
        Column("named", texts("common_failures.column.named")),
        Column("cured", texts("common_failures.column.cured")),
    ]
    seeds = int(result.settings["seeds"])
    rows = []
    for row in result.table:
        name, change = row["problem"], _change(row)
        says = row["evidence"] or units.MISSING
        problem, symptom, cure = (texts(key) for key in PROBLEMS[name])
        rows.append(
            [
                Cell(name, problem),
                Cell(symptom, symptom),
                Cell(says, Markup('<code>{}</code> <span lang="en">{}</span>').format(name, says)),
                Cell(cure, Markup("{} <code>{}</code>").format(cure, change) if change else cure),
                Cell(row["metric"], texts(METRICS[row["metric"]][1])),
                _spread(row, "before", texts),
                _spread(row, "after", texts),
                Cell(row["named"], f"{row['named']} / {seeds}"),
                Cell(row["cured"], f"{row['cured']} / {seeds}"),
            ]
        )
    also = [
        texts(
            "common_failures.table.also",
            problem=_name(row["problem"], texts),
            others=texts.join([_name(other, texts) for other in row["also_said"]]),
        )
        for row in result.table
        if row["also_said"]
    ]
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.common_failures.table"),
        caption=[texts("common_failures.table.caption", seeds=seeds)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[*also, *notes(result, texts)],
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=7, content=content)
