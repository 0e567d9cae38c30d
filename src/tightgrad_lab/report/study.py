"""What the pages of the case studies share: the flow of a step, what each combination does, the training curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from markupsafe import Markup
from matplotlib.figure import Figure

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.drawing import chart, curves, figures, flow
from tightgrad_lab.report.measured.files import Case, Runs
from tightgrad_lab.report.measured.full import full_table
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Pair, Table
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import COMBINATIONS, label, slug


@dataclass(frozen=True, slots=True)
class Study:
    """A case study's place on the page.

    Args:
        name: of the pair.
        case: name of the case.
        figures: parts of the number (as b in 15b) of its flow and of its training curves.
        tables: those of its combinations, of its other variants, of its full settings.
        is_alone: whether the pair shows no other case.
    """

    name: str
    case: str
    figures: tuple[str, str]
    tables: tuple[str, str, str]
    is_alone: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """Flow, summaries and steps, as patterns under runs/."""
        return (f"{self.case}/flow.json", f"{self.case}/*/seed*/summary.json", f"{self.case}/*/seed*/steps.jsonl")


def study_pair(name: str, *studies: Study) -> Pair:
    """The pair that shows these studies, in chapter 8."""

    def content(runs: Runs, texts: Texts) -> Content | None:
        blocks = [block for study in studies for block in study_blocks(study, runs, texts)]
        return Content(blocks) if blocks else None

    files = tuple(pattern for study in studies for pattern in study.files)
    command = " ".join(["tightgrad lab", *(study.case for study in studies)])
    return Pair(name, chapter=8, files=files, command=command, content=content)


def study_blocks(study: Study, runs: Runs, texts: Texts) -> list[FigureSpec | Table]:
    """Everything of one study; nothing without runs of it."""
    case = runs.case(study.case)
    if case is None:
        return []
    variants = variants_table(study, runs, texts)
    part = study.tables[2 if variants else 1]  # numbers have no gaps
    blocks = [
        flow_figure(study, case, texts),
        combinations_table(study, case, texts),
        curves_figure(study, case, texts),
        variants,
        full_table(runs, study.case, (study.name, part), title(study, texts("full.title"), texts), texts),
    ]
    return [block for block in blocks if block is not None]


def title(study: Study, of: str, texts: Texts) -> str:
    """A title, and which case it is about."""
    colon = "：" if texts.language == "zh" else ": "
    return f"{texts('case.' + study.case)}{colon}{of}"


def main_title(study: Study, kind: str, texts: Texts) -> str:
    """The title that the course gives the pair's figure or table, and the case if the pair shows several."""
    own = texts(f"pair.{study.name}.{kind}")
    colon = "：" if texts.language == "zh" else ": "
    return own if study.is_alone else f"{own}{colon}{texts('case.' + study.case)}"


def task(figure: Figure, case: str, texts: Texts, layout: Layout) -> None:
    """Above the flow of a step: what the task is, and where the three techniques act."""
    narrow = layout is NARROW
    wide, tall, gap = (1.5, 0.5, 0.25) if narrow else (2.2, 0.52, 0.38)
    columns, rows = (2, 3) if narrow else (3, 2)
    places = [
        (row % 2 * (columns - 1) + (1 - 2 * (row % 2)) * one, row) for row in range(rows) for one in range(columns)
    ]
    down = 0.26
    room = 0.42 + rows * (tall + down) + 0.36
    figures.with_room_above(figure, room)
    top = figure.get_figheight()
    left = (layout.width - columns * wide - (columns - 1) * gap) / 2
    steps = [*(tuple(texts(f"case.{case}.{part}").split("\n")) for part in ("data", "model", "loss"))]
    steps += [tuple(texts(f"case.task.{part}").split("\n")) for part in ("gradient", "update")]
    steps.append(tuple(texts(f"case.{case}.metric").split("\n")))
    nodes = []
    for place, ((column, row), lines) in enumerate(zip(places, steps, strict=True)):
        x = left + column * (wide + gap) + wide / 2
        y = top - 0.42 - tall / 2 - row * (tall + down)
        nodes.append(chart.Node(x, y, wide, tall, lines, "clip" if place == len(steps) - 3 else "muted"))
        chart.node(figure, nodes[-1], figures.SIZE_SMALL)
    for begin, end in pairwise(nodes):
        chart.arrow(figure, chart.between(begin, end))
    for key, y in (("task", top - 0.18), ("step", top - room + 0.12)):
        said, part = texts(f"case.part.{key}"), figures.PART if key == "step" else None
        figures.inch_text(figure, 0.1, y, said, figures.SIZE_SMALL, va="center", gid=part)


def flow_figure(study: Study, case: Case, texts: Texts) -> FigureSpec | None:
    """The measured flow of one step; None if the run did not write it."""
    if case.flow is None:
        return None
    measured = case.flow
    facts = {
        "combination": texts.combination(str(measured.get("combination", "none"))),
        "ranks": measured.get("ranks", units.MISSING),
    }

    def draw(drawn_texts: Texts, layout: Layout) -> Figure:
        drawn = flow.draw(measured, drawn_texts, layout)
        task(drawn, study.case, drawn_texts, layout)
        return drawn

    part = study.figures[0]
    return FigureSpec(
        slug=slug("figure", study.name, part),
        label=label(study.name, part),
        title=main_title(study, "figure", texts),
        alt=texts("image_case.figure.alt", stages=flow.in_words(measured, texts), **facts),
        caption=[texts("image_case.figure.caption", **facts)],
        source=cells.source(case, study.files[0]),
        draw=draw,
    )


def _noise_note(case: Case, texts: Texts) -> str:
    if case.seeds > 1:
        return texts("image_case.table.noise.seeds")
    size = cells.samples(case)
    if size:
        return texts("image_case.table.noise.test", samples=units.count_text(size))
    return texts("image_case.table.noise.none")


def fell_short(case: Case) -> list[str]:
    """The combinations that are worse than "none" by more than the noise."""
    found = {name: cells.comparison(case, name) for name in case.combinations}
    return [name for name, result in found.items() if result and result.verdict == "short"]


def _last_loss(case: Case, combination: str) -> Cell:
    losses = {}
    for seed, run in case.combinations[combination].items():
        epochs = run.summary.get("epochs") or [{}]
        losses[seed] = epochs[-1].get("train_loss")
    known = {seed: float(loss) for seed, loss in losses.items() if loss is not None}
    return cells.spread_cell(known, units.number_text) if known else Cell(None, units.MISSING)


def _clipped(case: Case, combination: str) -> Cell:
    shares = {seed: cells.clipped_share(run) for seed, run in case.combinations[combination].items()}
    known = {seed: share for seed, share in shares.items() if share is not None}
    return cells.spread_cell(known, units.percent_text) if known else Cell(None, units.MISSING)


def other_scores(case: Case) -> list[str]:
    """The scores beside the metric, in the order in which they were written."""
    found = [name for run in case.runs for name in (run.summary.get("metrics") or {})]
    return [name for name in dict.fromkeys(found) if name != cells.metric_name(case)]


def score_cell(case: Case, combination: str, name: str) -> Cell:
    """One score over seeds."""
    known = case.scores(combination, name)
    return cells.spread_cell(known, cells.metric_format(case)) if known else Cell(None, units.MISSING)


def combinations_table(study: Study, case: Case, texts: Texts) -> Table:
    """What each combination does, against the run without any technique; below them what simple methods reach."""
    metric = texts.metric(cells.metric_name(case))
    others = other_scores(case)
    columns = [
        Column("combination", texts("col.combination"), numeric=False),
        Column("value", texts("col.metric", metric=metric)),
        *(Column(name, texts("col.metric", metric=texts.metric(name))) for name in others),
        Column("difference", texts("col.difference")),
        Column("noise", texts("col.noise"), shown=False),
        Column("verdict", texts("col.verdict"), numeric=False),
        Column("wire_bytes", texts("col.wire_bytes"), "B"),
        Column("peak_memory_bytes", texts("col.peak_memory_bytes"), "B"),
        Column("step_seconds", texts("col.step_seconds"), "s"),
        Column("seconds", texts("col.seconds"), "s"),
        Column("train_loss", texts("col.train_loss"), shown=False),
        Column("clipped", texts("col.clipped")),
        Column("seeds", texts("col.seeds"), shown=False),
    ]
    form = cells.metric_format(case)
    rows = []
    for name in case.combinations:
        result = cells.comparison(case, name)
        rows.append(
            [
                cells.combination_cell(name, texts),
                cells.spread_cell(case.values(name, "value"), form),
                *(score_cell(case, name, other) for other in others),
                cells.difference_cell(case, result),
                Cell(result.noise if result else None, ""),
                cells.verdict_cell(result, name, texts),
                cells.spread_cell(case.values(name, "wire_bytes"), units.bytes_text),
                cells.spread_cell(case.values(name, "peak_memory_bytes"), units.bytes_text),
                cells.spread_cell(case.values(name, "step_seconds"), units.seconds_text),
                cells.spread_cell(case.values(name, "seconds"), units.seconds_text),
                _last_loss(case, name),
                _clipped(case, name),
                Cell(len(case.combinations[name]), str(len(case.combinations[name]))),
            ]
        )
    rows += [_baseline_row(case, name, columns, texts) for name in case.baselines]
    short = [texts.combination(name) for name in fell_short(case)]
    note = texts("image_case.table.short", names=texts.join(short)) if short else texts("image_case.table.short.none")
    notes: list[str | Markup] = []
    if "none" in case.combinations and (case.seeds > 1 or cells.samples(case)):
        notes.append(Markup("<strong>{}</strong>").format(note))
    notes.append(_noise_note(case, texts))
    notes += beaten(case, texts)
    part = study.tables[0]
    return Table(
        slug=slug("table", study.name, part),
        label=label(study.name, part),
        title=main_title(study, "table", texts),
        caption=[texts("image_case.table.caption", metric=metric), cells.seeds_note(case, texts)],
        columns=columns,
        rows=rows,
        source=cells.source(case, *study.files[1:]),
        notes=notes,
    )


def _baseline_row(case: Case, name: str, columns: Sequence[Column], texts: Texts) -> list[Cell]:
    """A simple method among the combinations: scores only."""
    scores = dict(case.baselines[name])
    scores["value"] = scores.pop(cells.metric_name(case), float("nan"))
    form = cells.metric_format(case)
    found = [Cell(name, Markup("<em>{}</em>").format(texts.get(f"baseline.{name}", name)))]
    for column in columns[1:]:
        if column.key in scores:
            found.append(Cell(scores[column.key], form(scores[column.key])))
        elif column.key == "verdict":
            found.append(Cell("baseline", texts("baseline.kind")))
        else:
            found.append(Cell(None, units.MISSING if column.shown else ""))
    return found


def beaten(case: Case, texts: Texts) -> list[str | Markup]:
    """One sentence on the best simple method against the combination of all three; nothing without both."""
    metric, form = cells.metric_name(case), cells.metric_format(case)
    known = {name: scores[metric] for name, scores in case.baselines.items() if metric in scores}
    whole = COMBINATIONS[-1]
    if not known or whole not in case.combinations:
        return []
    better = max if case.higher_is_better else min
    best = better(known, key=lambda name: known[name])
    own = cells.mean(case, whole, "value")
    wins = own > known[best] if case.higher_is_better else own < known[best]
    return [
        texts(
            "baseline.beaten" if wins else "baseline.not_beaten",
            combination=texts.combination(whole),
            own=form(own),
            name=texts.get(f"baseline.{best}", best),
            value=form(known[best]),
        )
    ]


def curves_figure(study: Study, case: Case, texts: Texts) -> FigureSpec | None:
    """Test metric after each epoch; None if the runs did not write any."""
    found: dict[str, list[curves.Curve]] = {}
    for name, seeds in case.combinations.items():
        for run in seeds.values():
            epochs = run.summary.get("epochs", [])
            curve = [(float(e["epoch"]), float(e["value"])) for e in epochs if e.get("value") is not None]
            if curve:
                found.setdefault(name, []).append(curve)
    if not found:
        return None
    metric, form = cells.metric_name(case), cells.metric_format(case)
    share = cells.is_share(case)

    def draw(drawn_texts: Texts, layout: Layout) -> Figure:
        return curves.draw(found, metric, drawn_texts, layout, share=share)

    last = [f"{texts.combination(name)} {form(cells.mean(case, name, 'value'))}" for name in found]
    words, part = texts.metric(metric), study.figures[1]
    return FigureSpec(
        slug=slug("figure", study.name, part),
        label=label(study.name, part),
        title=title(study, texts("curves.title"), texts),
        alt=texts("curves.alt", metric=words, points=texts.join(last)),
        caption=[],
        source=cells.source(case, study.files[1]),
        draw=draw,
        shows=texts("curves.caption", metric=words) + _ends(found, form, texts),
    )


def _ends(found: Mapping[str, Sequence[curves.Curve]], form: cells.Format, texts: Texts) -> str:
    """Between which values the combinations end, and where none of the techniques does."""
    last = {name: fmean(curve[-1][1] for curve in seeds) for name, seeds in found.items()}
    if "none" not in last:
        return ""
    ends = {"low": min(last.values()), "high": max(last.values()), "none": last["none"]}
    return texts("curves.ends", count=len(last), **{name: form(value) for name, value in ends.items()})


def variants_table(study: Study, runs: Runs, texts: Texts) -> Table | None:
    """The case's other models and tasks, without any technique and with all three; None without runs of them."""
    default = runs.case(study.case)
    others = {name: case for name, case in runs.variants(study.case).items() if not _is_full(case)}
    if not others or default is None:
        return None
    whole = {str(default.runs[0].summary.get("variant") or texts("variants.default")): default, **others}
    scores = other_scores(default)
    metric, form = texts.metric(cells.metric_name(default)), cells.metric_format(default)
    columns = [
        Column("variant", texts("col.variant"), numeric=False),
        Column("combination", texts("col.combination"), numeric=False),
        Column("value", texts("col.metric", metric=metric)),
        *(Column(name, texts("col.metric", metric=texts.metric(name))) for name in scores),
        Column("baseline", texts("col.best_baseline")),
        Column("wire_bytes", texts("col.wire_bytes"), "B"),
        Column("peak_memory_bytes", texts("col.peak_memory_bytes"), "B"),
        Column("step_seconds", texts("col.step_seconds"), "s"),
    ]
    rows = [
        [
            Cell(variant, texts.get(f"variant.{variant}", variant)),
            cells.combination_cell(name, texts),
            cells.spread_cell(case.values(name, "value"), form),
            *(score_cell(case, name, other) for other in scores),
            _best_baseline(case, texts),
            cells.spread_cell(case.values(name, "wire_bytes"), units.bytes_text),
            cells.spread_cell(case.values(name, "peak_memory_bytes"), units.bytes_text),
            cells.spread_cell(case.values(name, "step_seconds"), units.seconds_text),
        ]
        for variant, case in whole.items()
        for name in (COMBINATIONS[0], COMBINATIONS[-1])
        if name in case.combinations
    ]
    part = study.tables[1]
    return Table(
        slug=slug("table", study.name, part),
        label=label(study.name, part),
        title=title(study, texts("variants.title"), texts),
        caption=[texts("variants.caption", metric=metric), cells.seeds_note(default, texts)],
        columns=columns,
        rows=rows,
        source=cells.source(
            default, f"{study.case}/*/seed*/summary.json", f"{study.case}/variants/*/*/seed*/summary.json"
        ),
    )


def _is_full(case: Case) -> bool:
    return "--full" in case.command.split()


def _best_baseline(case: Case, texts: Texts) -> Cell:
    metric, form = cells.metric_name(case), cells.metric_format(case)
    known = {name: scores[metric] for name, scores in case.baselines.items() if metric in scores}
    if not known:
        return Cell(None, units.MISSING)
    better = max if case.higher_is_better else min
    best = better(known, key=lambda name: known[name])
    return Cell(known[best], f"{form(known[best])} ({texts.get(f'baseline.{best}', best)})")
