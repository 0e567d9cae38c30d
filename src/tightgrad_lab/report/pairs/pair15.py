"""Pair 15: image classification; the flow of a step and what each combination does."""

from markupsafe import Markup
from matplotlib.figure import Figure

from tightgrad_lab.report import cells, curves, flow, units
from tightgrad_lab.report.files import Case, Runs
from tightgrad_lab.report.model import Cell, Column, Content, FigureSpec, Layout, Pair, Table
from tightgrad_lab.report.texts import Texts

SUMMARIES = "image/*/seed*/summary.json"
STEPS = "image/*/seed*/steps.jsonl"
FLOW = "image/flow.json"


def figure(case: Case, texts: Texts) -> FigureSpec | None:
    """The measured flow of one step; None if the run did not write it."""
    if case.flow is None:
        return None
    measured = case.flow
    facts = {
        "combination": texts.combination(str(measured.get("combination", "none"))),
        "ranks": measured.get("ranks", units.MISSING),
    }

    def draw(drawn_texts: Texts, layout: Layout) -> Figure:
        return flow.draw(measured, drawn_texts, layout)

    return FigureSpec(
        slug="figure15",
        label="15",
        title=texts("pair.15.figure"),
        alt=texts("fig15.alt", stages=flow.in_words(measured, texts), **facts),
        caption=[texts("fig15.caption", **facts)],
        source=cells.source(case, FLOW),
        draw=draw,
    )


def _noise_note(case: Case, texts: Texts) -> str:
    if case.seeds > 1:
        return texts("table15.noise.seeds")
    size = cells.samples(case)
    if size:
        return texts("table15.noise.test", samples=units.count_text(size))
    return texts("table15.noise.none")


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


def table(case: Case, texts: Texts) -> Table:
    """What each combination does, against the run without any technique."""
    metric = texts.metric(cells.metric_name(case))
    columns = [
        Column("combination", texts("col.combination"), numeric=False),
        Column("value", texts("col.metric", metric=metric)),
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
    short = [texts.combination(name) for name in fell_short(case)]
    note = texts("table15.short", names=texts.join(short)) if short else texts("table15.short.none")
    notes: list[str | Markup] = []
    if "none" in case.combinations and (case.seeds > 1 or cells.samples(case)):
        notes.append(Markup("<strong>{}</strong>").format(note))
    notes.append(_noise_note(case, texts))
    return Table(
        slug="table15",
        label="15",
        title=texts("pair.15.table"),
        caption=[texts("table15.caption", metric=metric), cells.seeds_note(case, texts)],
        columns=columns,
        rows=rows,
        source=cells.source(case, SUMMARIES, STEPS),
        notes=notes,
    )


def training_curves(case: Case, texts: Texts) -> FigureSpec | None:
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

    def draw(drawn_texts: Texts, layout: Layout) -> Figure:
        return curves.draw(found, metric, drawn_texts, layout)

    last = [f"{texts.combination(name)} {form(cells.mean(case, name, 'value'))}" for name in found]
    words = texts.metric(metric)
    return FigureSpec(
        slug="figure15b",
        label="15b",
        title=texts("curves.title"),
        alt=texts("curves.alt", metric=words, points=texts.join(last)),
        caption=[texts("curves.caption", metric=words)],
        source=cells.source(case, SUMMARIES),
        draw=draw,
    )


def content(runs: Runs, texts: Texts) -> Content | None:
    case = runs.case("image")
    if case is None:
        return None
    blocks = [figure(case, texts), table(case, texts), training_curves(case, texts)]
    return Content([block for block in blocks if block is not None])


PAIR = Pair(number=15, chapter=8, files=(FLOW, SUMMARIES, STEPS), command="tightgrad lab image", content=content)
