"""The three techniques combined, as a 2x2x2 factorial of the image case."""

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.drawing import chart, figures, plane
from tightgrad_lab.report.measured.files import Case, Runs
from tightgrad_lab.report.measured.stats import EFFECTS, factorial_effect, spread
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Pair, Table
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import TECHNIQUES, label, slug

NAME = "combinations"
SUMMARIES = "image/*/seed*/summary.json"


def _points(case: Case) -> list[plane.Point]:
    return [
        plane.Point(
            combination=name,
            wire_bytes=cells.mean(case, name, "wire_bytes"),
            quality=spread(list(case.values(name, "value").values())),
            memory_bytes=cells.mean(case, name, "peak_memory_bytes"),
        )
        for name in case.combinations
    ]


def strategy(figure: Figure, texts: Texts, layout: Layout) -> None:
    """Above what is drawn: symptoms, the technique that each asks for, and their order in a step."""
    narrow = layout is NARROW
    pairs = len(TECHNIQUES)
    wide, tall, gap, down = (layout.width - 0.2, 0.5, 0.0, 0.26) if narrow else (2.34, 0.58, 0.19, 0.3)
    room = 0.45 + (pairs * (2 * tall + 2 * down) if narrow else 2 * tall + 2 * down) + tall + 0.45
    figures.with_room_above(figure, room)
    top = figure.get_figheight()
    figures.inch_text(figure, 0.1, top - 0.2, texts("combinations.figure.strategy"), figures.SIZE_SMALL, va="center")
    ends = []
    for place, name in enumerate(TECHNIQUES):
        x = layout.width / 2 if narrow else 0.1 + place * (wide + gap) + wide / 2
        y = top - 0.45 - tall / 2 - (place * 2 * (tall + down) if narrow else 0)
        symptom = chart.Node(x, y, wide, tall, _lines(texts, f"combinations.figure.symptom.{name}"))
        remedy_y = y - tall - down * (0.6 if narrow else 1)
        remedy = chart.Node(x, remedy_y, wide, tall, _lines(texts, f"combinations.figure.remedy.{name}"), name)
        for one in (symptom, remedy):
            chart.node(figure, one, figures.SIZE_SMALL)
        chart.arrow(figure, [symptom.side("bottom"), remedy.side("top")])
        ends.append(remedy)
    order = chart.Node(
        layout.width / 2,
        top - room + 0.45 + tall / 2,
        layout.width - 0.2,
        tall * 0.72,
        (texts("combinations.figure.order.narrow" if narrow else "combinations.figure.order"),),
        "ink",
    )
    chart.node(figure, order, figures.SIZE_SMALL if not narrow else 7.5)
    for one in ends[-1:] if narrow else ends:
        chart.arrow(figure, [one.side("bottom"), (one.x, order.side("top")[1])])
    said = texts("combinations.figure.results")
    figures.inch_text(figure, 0.1, top - room + 0.1, said, figures.SIZE_SMALL, va="center", gid=figures.PART)


def _lines(texts: Texts, key: str) -> tuple[str, ...]:
    return tuple(texts(key).split("\n"))


def figure(case: Case, texts: Texts) -> FigureSpec:
    """All combinations on the accuracy / bytes / memory plane."""
    points = _points(case)
    metric, form = cells.metric_name(case), cells.metric_format(case)
    in_words = [
        texts(
            "combinations.figure.point",
            combination=texts.combination(point.combination),
            value=form(point.quality.mean),
            bytes=units.bytes_text(point.wire_bytes),
            memory=units.bytes_text(point.memory_bytes),
        )
        for point in points
    ]

    def draw(drawn_texts: Texts, layout: Layout) -> Figure:
        drawn = plane.draw(points, metric, cells.samples(case), case.seeds, drawn_texts, layout)
        strategy(drawn, drawn_texts, layout)
        return drawn

    caption: list[str | Markup] = [texts("combinations.figure.caption")]
    if case.seeds > 1:
        caption.append(texts("combinations.figure.bars"))
    elif cells.samples(case) and "none" in case.combinations:
        caption.append(texts("combinations.figure.band"))
    caption.append(cells.seeds_note(case, texts))
    alt = texts("combinations.figure.alt", count=len(points), metric=texts.metric(metric), points=" ".join(in_words))
    title, source = texts("pair.combinations.figure"), cells.source(case, SUMMARIES)
    return FigureSpec("figure13", "13", title, alt, caption, source, draw, _shows(case, texts))


def _shows(case: Case, texts: Texts) -> str:
    """What all three together did in the figure; empty for the general sentence."""
    fewer = cells.ratio(case, "none", "wire_bytes", base="+".join(TECHNIQUES))
    if fewer is None:
        return ""
    own, base = (cells.metric_format(case)(cells.mean(case, name, "value")) for name in ("+".join(TECHNIQUES), "none"))
    facts = {"factor": units.factor_text(fewer)[:-1], "own": own, "base": base}
    return texts("combinations.figure.shows", metric=texts.metric(cells.metric_name(case)), **facts)


def table(case: Case, texts: Texts) -> Table:
    """The factorial, a row for each combination."""
    metric = texts("col.metric", metric=texts.metric(cells.metric_name(case)))
    columns = [
        Column("combination", texts("col.combination"), numeric=False),
        *(Column(name, texts(f"technique.{name}"), shown=False) for name in TECHNIQUES),
        Column("value", metric),
        Column("wire_bytes", texts("col.wire_bytes"), "B"),
        Column("compression_factor", texts("col.compression_factor")),
        Column("peak_memory_bytes", texts("col.peak_memory_bytes"), "B"),
        Column("step_seconds", texts("col.step_seconds"), "s"),
        Column("skipped_steps", texts("col.skipped_steps")),
    ]
    rows = [
        [
            cells.combination_cell(name, texts),
            *(Cell(int(technique in name.split("+")), "") for technique in TECHNIQUES),
            cells.spread_cell(case.values(name, "value"), cells.metric_format(case)),
            cells.spread_cell(case.values(name, "wire_bytes"), units.bytes_text),
            cells.factor_cell(case, name),
            cells.spread_cell(case.values(name, "peak_memory_bytes"), units.bytes_text),
            cells.spread_cell(case.values(name, "step_seconds"), units.seconds_text),
            cells.spread_cell(case.values(name, "skipped_steps"), units.number_text),
        ]
        for name in case.combinations
    ]
    caption: list[str | Markup] = [texts("combinations.table.caption"), cells.seeds_note(case, texts)]
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.combinations.table"),
        caption=caption,
        columns=columns,
        rows=rows,
        source=cells.source(case, SUMMARIES),
        notes=settings(case, texts),
    )


def settings(case: Case, texts: Texts) -> list[str | Markup]:
    """The settings that all runs share, and the names of those that differ."""
    keys = ("train_samples", "test_samples", "num_parameters")
    every = [
        {
            "ranks": run.config["ranks"],
            **run.config["settings"],
            **{k: run.summary[k] for k in keys if k in run.summary},
        }
        for run in case.runs
    ]
    names = list(dict.fromkeys(name for one in every for name in one))
    same, varying = [], []
    for name in names:
        label = texts.get(f"set.{name}", name.replace("_", " "))
        found = [one.get(name) for one in every]
        if any(value != found[0] for value in found):
            varying.append(label)
        elif isinstance(found[0], int | float | str):
            shown = units.count_text(found[0]) if type(found[0]) is int else str(found[0])
            same.append(Markup("{}{}{}").format(label, units.NBSP, shown))
    notes: list[str | Markup] = []
    colon = "：" if texts.language == "zh" else ": "
    if same:
        notes.append(Markup(escape(texts("settings.same") + colon)) + Markup(" · ").join(same))
    if varying:
        notes.append(texts.join(varying) + colon + texts("settings.varies"))
    return notes


def _effect_name(effect: str, texts: Texts) -> str:
    return " × ".join(texts(f"technique.{part}") for part in effect.split("+"))


def effects(case: Case, texts: Texts) -> Table | None:
    """Main effects and interactions; None unless all eight combinations were run."""
    quantities = ("value", "wire_bytes", "peak_memory_bytes", "step_seconds")
    means = {key: {name: cells.mean(case, name, key) for name in case.combinations} for key in quantities}
    if factorial_effect(means["value"], "clip", ratio=False) is None:
        return None
    share = cells.is_share(case)
    columns = [
        Column("effect", texts("col.effect"), numeric=False),
        Column("value", texts("col.metric", metric=texts.metric(cells.metric_name(case)))),
        Column("wire_bytes", texts("col.wire_bytes"), "×"),
        Column("peak_memory_bytes", texts("col.peak_memory_bytes"), "×"),
        Column("step_seconds", texts("col.step_seconds"), "×"),
    ]
    rows = []
    for effect in EFFECTS:
        value = factorial_effect(means["value"], effect, ratio=False)
        ratios = [factorial_effect(means[key], effect, ratio=True) for key in quantities[1:]]
        form = units.points_text if share else lambda number: units.signed(number, 3)
        rows.append(
            [
                Cell(effect.replace("+", " x "), _effect_name(effect, texts)),
                cells.optional_cell(value, form),
                *(cells.optional_cell(found, units.factor_text) for found in ratios),
            ]
        )
    return Table(
        slug=slug("table", NAME, "b"),
        label=label(NAME, "b"),
        title=texts("effects.title"),
        caption=[texts("effects.caption")],
        columns=columns,
        rows=rows,
        source=cells.source(case, SUMMARIES),
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    case = runs.case("image")
    if case is None:
        return None
    factorial = effects(case, texts)
    return Content([figure(case, texts), table(case, texts), *([factorial] if factorial else [])])


PAIR = Pair(NAME, chapter=7, files=(SUMMARIES,), command="tightgrad lab image", content=content)
