"""The states that a window passed, and what gradient each framework steps with."""

import statistics
from itertools import pairwise
from typing import Literal

from markupsafe import Markup
from matplotlib.figure import Figure

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import chart, figures, machine
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import ResultOf, notes, read_result
from tightgrad_lab.report.model import NARROW, Cell, Column, Content, FigureSpec, Layout, Table, measured_pair
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import label, slug
from tightgrad_lab.schema.accumulation import (
    MachineWindow,
    OutOfMemoryCell,
    StateVisits,
    StepCell,
    WindowStatesFigure,
    WindowStatesRow,
)

Result = ResultOf[WindowStatesFigure, WindowStatesRow]

NAME = "window_states"
STATES = {
    "fetch": "window_states.figure.fetch",
    "count": "window_states.figure.count",
    "micro_batch": "window_states.figure.micro_batch",
    "vote": "window_states.figure.vote",
    "cut": "window_states.figure.cut",
    "guard": "window_states.figure.guard",
    "skip": "window_states.figure.skip",
    "reduce": "window_states.figure.reduce",
    "clip": "window_states.figure.clip",
    "step": "window_states.figure.step",
}
"""The states that have a box, and the keys of their names."""
WINDOWS = {
    "full": "window_states.figure.window.full",
    "out_of_memory": "window_states.figure.window.out_of_memory",
    "nonfinite": "window_states.figure.window.nonfinite",
    "partial": "window_states.figure.window.partial",
}
CELLS: dict[Literal["equal", "ragged", "partial", "next", "empty"], str] = {
    "equal": "window_states.column.equal",
    "ragged": "window_states.column.ragged",
    "partial": "window_states.column.partial",
    "next": "window_states.column.next",
    "empty": "window_states.column.empty",
}
"""The windows of the table, and the keys of their columns."""
OUTCOMES = {
    "right": "window_states.table.right",
    "wrong": "window_states.table.wrong",
    "no_step": "window_states.table.no_step",
    "not_finite": "window_states.table.not_finite",
    "fails": "window_states.table.fails",
    "hangs": "window_states.table.hangs",
}
LINES = {
    "take": "muted",
    "forward": "muted",
    "backward": "accumulate",
    "ask": "accumulate",
    "clip": "clip",
    "step": "muted",
    "zero": "accumulate",
}
"""The lines of the loop as a student writes it, and the colour of each."""
LOOP = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (2, 1), (1, 1)]
"""Column and row of each line, on a wide figure."""
Row = WindowStatesRow


def _state(result: Result, name: str) -> StateVisits:
    return next(state for state in result.figure["states"] if state["state"] == name)


def _facts(result: Result, texts: Texts) -> dict[str, list[str]]:
    """What stands in the boxes: how often and how long, and what was special."""
    facts = {}
    for name in STATES:
        state = _state(result, name)
        line = texts("window_states.figure.visits", count=state["visits"])
        if state["seconds"] is not None:
            line += f" · {units.seconds_text(float(state['seconds']))}"
        facts[name] = [line]
    windows = result.figure["windows"]
    weights = [float(window["weight"]) for window in windows]
    facts["count"].append(f"N = {units.count_text(min(weights))}–{units.count_text(max(weights))}")
    facts["vote"].append(texts("window_states.figure.out_of_memory", count=_state(result, "out_of_memory")["visits"]))
    sent = max(float(window["wire_bytes"]) for window in windows)
    facts["reduce"].append(texts("window_states.figure.sent", bytes=units.bytes_text(sent)))
    return facts


def draw(result: Result, texts: Texts, layout: Layout) -> Figure:
    """The state machine with the counts of this run."""
    counts = {(edge["from"], edge["to"]): int(edge["count"]) for edge in result.figure["transitions"]}
    names = {state: texts(key) for state, key in STATES.items()}
    figure = machine.draw(layout, names, _facts(result, texts), counts)
    loop(figure, texts, layout)
    return figure


def loop(figure: Figure, texts: Texts, layout: Layout) -> None:
    """Above what is drawn: the loop as a student writes it, a box for each line of code."""
    narrow = layout is NARROW
    columns, rows = (2, 4) if narrow else (4, 2)
    wide, tall, gap, down = (1.5, 0.56, 0.24, 0.3) if narrow else (1.52, 0.56, 0.36, 0.32)
    room = 0.62 + rows * (tall + down) + 0.38
    figures.with_room_above(figure, room)
    top = figure.get_figheight()
    left = (layout.width - columns * wide - (columns - 1) * gap) / 2
    spots = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2), (1, 3)] if narrow else LOOP
    nodes = {}
    for (column, row), (key, color) in zip(spots, LINES.items(), strict=True):
        x, y = left + column * (wide + gap) + wide / 2, top - 0.62 - tall / 2 - row * (tall + down)
        lines = tuple(texts(f"window_states.figure.loop.{key}").split("\n"))
        nodes[key] = chart.Node(x, y, wide, tall, lines, color, question=key == "ask")
        chart.node(figure, nodes[key], figures.SIZE_SMALL)
    order = list(nodes.values())
    for begin, end in pairwise(order):
        chart.arrow(figure, chart.between(begin, end))
    ask, first, last = nodes["ask"], nodes["take"], nodes["zero"]
    yes, no = texts("window_states.figure.loop.yes"), texts("window_states.figure.loop.no")
    x, y = ask.side("bottom")
    figures.inch_text(figure, x + 0.1, y - 0.1, yes, figures.SIZE_SMALL, color=figures.MUTED, va="center")
    if narrow:
        x, y = ask.side("left")
        back = [(x, y), (x - 0.08, y), (x - 0.08, first.y), first.side("left")]
        chart.arrow(figure, back, no, (x + 0.2, y + 0.28))
        chart.arrow(
            figure, [last.side("left"), (0.04, last.y), (0.04, first.y + 0.1), (first.side("left")[0], first.y + 0.1)]
        )
    else:
        x, y = ask.side("top")
        chart.arrow(figure, [(x, y), (x, y + 0.17), (first.x, y + 0.17), first.side("top")], no, (x - 0.14, y + 0.08))
        chart.arrow(figure, [last.side("left"), (first.x, last.y), first.side("bottom")])
    for key, y in (("loop", top - 0.2), ("machine", top - room + 0.12)):
        said, part = texts(f"window_states.figure.part.{key}"), figures.PART if key == "machine" else None
        figures.inch_text(figure, 0.1, y, said, figures.SIZE_SMALL, va="center", gid=part)


def _window_in_words(window: MachineWindow, texts: Texts) -> str:
    error = window["relative_error"]
    shown = (
        texts("window_states.figure.skipped")
        if error is None
        else texts("window_states.figure.error", error=units.number_text(float(error)))
    )
    return texts(
        "window_states.figure.window",
        kind=texts(WINDOWS[window["kind"]]),
        micro_batches=" + ".join(str(count) for count in window["micro_batches"]),
        backwards=" + ".join(str(count) for count in window["backwards"]),
        weight=units.count_text(float(window["weight"])),
        result=shown,
    )


def figure(result: Result, texts: Texts) -> FigureSpec:
    """The states and what led from one to the next."""
    found = result.figure
    stop = "；" if texts.language == "zh" else "; "
    windows = stop.join(_window_in_words(window, texts) for window in found["windows"])
    facts = _facts(result, texts)
    colon = "：" if texts.language == "zh" else ": "
    states = stop.join(f"{texts(key)}{colon}{texts.join(facts[name])}" for name, key in STATES.items())
    counted = {
        "micro_batches": found["micro_batches"],
        "ranks": found["ranks"],
        "windows": len(found["windows"]),
        "parameters": units.count_text(found["parameters"]),
    }
    return FigureSpec(
        slug=slug("figure", NAME),
        label=label(NAME),
        title=texts("pair.window_states.figure"),
        alt=texts("window_states.figure.alt", states=states, **counted),
        caption=[
            texts("window_states.figure.caption", **counted),
            texts("window_states.figure.windows", windows=windows),
        ],
        source=result.source,
        draw=lambda drawn_texts, layout: draw(result, drawn_texts, layout),
    )


def _gain(cell: StepCell | None, texts: Texts) -> Cell:
    """The gain, and behind it the relative error of a gradient that is wrong."""
    if cell is None:
        return Cell(None, units.MISSING)
    kind, _, error = str(cell["outcome"]).partition(": ")
    if kind == "fails":
        return Cell(None, Markup("{} <code>{}</code>").format(texts(OUTCOMES[kind]), error))
    if kind == "not_finite":
        return Cell(None, texts(OUTCOMES[kind]))
    if kind == "no_step":
        return Cell(0.0, texts(OUTCOMES[kind]))
    gain = statistics.median(value for value in cell["gain"] if value is not None)
    shown = f"{gain:.3f}×"
    if kind == "right":
        return Cell(gain, shown)
    off = texts(OUTCOMES[kind], error=units.percent_text(max(_known_errors(cell))))
    return Cell(gain, Markup("{}<br><small>{}</small>").format(shown, off))


def _known_errors(cell: StepCell | None) -> list[float]:
    return [] if cell is None else [value for value in cell["relative_error"] if value is not None]


def _error(cell: StepCell | None) -> Cell:
    known = _known_errors(cell)
    return Cell(max(known), units.number_text(max(known))) if known else Cell(None, units.MISSING)


def _memory(cell: OutOfMemoryCell | None, texts: Texts) -> Cell:
    """What became of the gradient, or of each rank."""
    if cell is None:
        return Cell(None, units.MISSING)
    raw = "; ".join(map(str, cell["by_rank"]))
    if cell["outcome"] == "right":
        return Cell(raw, texts("window_states.table.same", retries=cell["retries"]))
    parts = []
    for rank, said in enumerate(cell["by_rank"]):
        shown = (
            Markup("{}").format(texts(OUTCOMES[said])) if said in OUTCOMES else Markup("<code>{}</code>").format(said)
        )
        parts.append(texts.html("window_states.table.rank", rank=rank, said=shown))
    return Cell(raw, Markup("{}").format(Markup("；" if texts.language == "zh" else "; ").join(parts)))


def _framework(row: Row, texts: Texts) -> Cell:
    version = row["version"] or texts("window_states.table.missing")
    return Cell(row["framework"], f"{row['framework']} {version}")


def table(result: Result, texts: Texts) -> Table:
    """A row for each loop of each framework."""
    columns = [
        Column("framework", texts("window_states.column.framework"), numeric=False),
        Column("method", texts("window_states.column.method"), numeric=False),
        Column("ranks", texts("window_states.column.ranks")),
        *(Column(name, texts(key)) for name, key in CELLS.items()),
        Column("out_of_memory", texts("window_states.column.out_of_memory"), numeric=False),
        *(
            Column(f"{name}_error", texts("window_states.column.error", window=texts(key)), shown=False)
            for name, key in CELLS.items()
        ),
        Column("measured", texts("window_states.column.measured"), numeric=False, shown=False),
    ]
    rows = [
        [
            _framework(row, texts),
            Cell(row["method"], Markup("<code>{}</code>").format(row["method"])),
            Cell(row["ranks"], str(row["ranks"])),
            *(_gain(row[name], texts) for name in CELLS),
            _memory(row["out_of_memory"], texts),
            *(_error(row[name]) for name in CELLS),
            Cell(row["measured"], row["measured"] or ""),
        ]
        for row in result.table
    ]
    return Table(
        slug=slug("table", NAME),
        label=label(NAME),
        title=texts("pair.window_states.table"),
        caption=[_caption(result, texts), *_verdicts(result, texts)],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[
            _memory_note(result, texts),
            texts.html("window_states.table.loops"),
            texts.html("window_states.table.empty_mean"),
            *_elsewhere(result, texts),
            *notes(result, texts),
        ],
    )


def _tokens(result: Result, name: str) -> str:
    ranks = result.figure["tokens"][name]
    return ", ".join(str(count) for count in ranks[0])


def _caption(result: Result, texts: Texts) -> str:
    tokens = result.figure["tokens"]
    micro_batches = len(tokens["equal"][0])
    return texts(
        "window_states.table.caption",
        micro_batches=micro_batches,
        equal=_tokens(result, "equal"),
        ragged=_tokens(result, "ragged"),
        empty=_tokens(result, "empty"),
        partial=len(tokens["partial"][0]) - micro_batches,
        loaded=len(tokens["partial"][0]),
        seeds=result.settings["seeds"],
    )


def _named(row: Row, texts: Texts) -> str:
    return (
        f"{row['framework']} ({row['method']})" if texts.language == "en" else f"{row['framework']}（{row['method']}）"
    )


def _verdicts(result: Result, texts: Texts) -> list[str]:
    """Which loops are right everywhere, and how many are not where."""
    run = [row for row in result.table if any(row[name] for name in CELLS)]
    right = [row for row in run if all(_is_right(row[name]) for name in CELLS)]
    found = []
    if right:
        found.append(texts("window_states.table.all_right", names=texts.join([_named(row, texts) for row in right])))
    wrong = [
        texts(
            "window_states.table.count",
            window=texts(key),
            wrong=sum(row[name] is not None and not _is_right(row[name]) for row in run),
            count=len(run),
        )
        for name, key in CELLS.items()
    ]
    found.append(texts("window_states.table.off", windows=("；" if texts.language == "zh" else "; ").join(wrong)))
    return found


def _is_right(cell: StepCell | None) -> bool:
    return cell is not None and cell["outcome"] == "right"


def _memory_note(result: Result, texts: Texts) -> Markup:
    memory = result.figure["memory"]
    return texts.html(
        "window_states.table.memory",
        samples=memory["samples"],
        fits=memory["fits"],
        seconds=f"{result.settings['collective_seconds']:g}",
    )


def _elsewhere(result: Result, texts: Texts) -> list[str]:
    """Which frameworks were not measured on this machine: when they were, or that they are not there."""
    found = []
    for row in result.table:
        if row["measured"] and row["equal"] is not None:
            date, seeds = row["measured"][:10], len(row["equal"]["gain"])
            found.append(texts("window_states.table.elsewhere", framework=row["framework"], date=date, seeds=seeds))
        elif row["version"] is None:
            found.append(texts("window_states.table.not_run", framework=row["framework"]))
    return list(dict.fromkeys(found))


def content(runs: Runs, texts: Texts) -> Content | None:
    """Both, if the experiment has been run."""
    result = read_result(runs.root, NAME)
    return None if result is None else Content([figure(result, texts), table(result, texts)])


PAIR = measured_pair(NAME, chapter=5, content=content)
