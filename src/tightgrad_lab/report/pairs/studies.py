"""The tables of the studies: experiments without a figure, shown with the pair whose question they answer."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import PUBLISHED, Result, notes, read_best
from tightgrad_lab.report.model import Cell, Column, Table
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import STUDIES, label, slug

PARTS = {"small_batches": "b", "critical_batch": "c", "muon": "b"}
"""What stands behind the number of the pair in a table's label."""


def tables(pair: str, runs: Runs, texts: Texts) -> list[Table]:
    """Return the tables of a pair's studies, measured here or published; none beside a pair's published results."""
    if runs.root.name == PUBLISHED:
        return []
    found = [(name, read_best(runs.root, name)) for name in PARTS if STUDIES[name] == pair]
    return [_SHOWN[name](result, texts) for name, result in found if result is not None]


def _table(name: str, result: Result, texts: Texts, columns: list[Column], rows: list[list[Cell]]) -> Table:
    where = (STUDIES[name], PARTS[name])
    elsewhere = result.path.parents[1].name == PUBLISHED
    about = texts(
        "studies.elsewhere" if elsewhere else "studies.here",
        processor=str(result.environment.get("processor", units.MISSING)),
        cores=str(result.environment.get("cores", units.MISSING)),
        date=str(result.environment["time"])[:10],
        seconds=units.seconds_text(result.seconds),
    )
    return Table(
        slug=slug("table", *where),
        label=label(*where),
        title=texts(f"studies.{name}.title"),
        caption=[texts(f"studies.{name}.caption", **_facts(result, texts))],
        columns=columns,
        rows=rows,
        source=result.source,
        notes=[about, *notes(result, texts)],
        kind="study",
    )


def _facts(result: Result, texts: Texts) -> dict[str, str]:
    """What captions say about the scale."""
    found = {key: units.count_text(value) for key, value in result.figure.items() if isinstance(value, int)}
    found |= {key: units.count_text(value) for key, value in result.settings.items() if isinstance(value, int)}
    if "rates" in result.settings:
        found["rates"] = texts.join([f"{rate:g}" for rate in result.settings["rates"]])
    if "bytes_of_piece" in result.figure:
        found["text_bytes"] = units.count_text(result.settings["pieces"] * result.figure["bytes_of_piece"])
    if "tolerance" in result.settings:
        found["tolerance"] = f"{result.settings['tolerance']:g}"
        found["window_bytes"] = units.count_text(result.settings["window"] * result.figure["bytes_of_piece"])
    if "muon_rate" in result.figure:
        found["muon_rate"] = f"{result.figure['muon_rate']:g}"
    return found


def losses(values: Sequence[float | None]) -> Cell:
    """Return the mean and the standard deviation over seeds; a loss that is not finite is said to be one."""
    if any(value is None for value in values):
        return Cell(None, "∞")
    return cells.spread_cell({seed: float(value) for seed, value in enumerate(values) if value is not None}, _loss)


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _small_batches(result: Result, texts: Texts) -> Table:
    columns = [
        Column("batch", texts("large_batches.column.batch")),
        Column("choice", texts("studies.small_batches.choice"), numeric=False),
        Column("beta2", "beta2"),
        Column("learning_rate", texts("studies.small_batches.rate")),
        Column("steps", texts("large_batches.column.steps")),
        Column("loss", texts("studies.loss")),
    ]
    rows = [
        [
            Cell(row["batch"], units.count_text(row["batch"])),
            Cell(row["choice"], texts(f"studies.small_batches.{row['choice']}")),
            Cell(row["beta2"], f"{row['beta2']:.4f}"),
            Cell(row["learning_rate"], units.number_text(row["learning_rate"])),
            Cell(row["steps"], units.count_text(row["steps"])),
            losses(row["loss"]),
        ]
        for row in result.table
    ]
    return _table("small_batches", result, texts, columns, rows)


def _critical_batch(result: Result, texts: Texts) -> Table:
    """The branches first: a row for each place; then the whole trainings."""
    batches = list(result.settings["batches"])
    columns = [
        Column("place", texts("studies.critical_batch.place"), numeric=False),
        *(Column(f"batch{batch}", texts("studies.critical_batch.batch", batch=batch)) for batch in batches),
        Column("critical", texts("studies.critical_batch.critical")),
        Column("steps", texts("large_batches.column.steps")),
    ]
    rows = []
    for place in result.figure["places"]:
        name = texts("studies.critical_batch.after", count=units.count_text(place["place"]))
        own = [losses(one["loss"]) for one in place["losses"]]
        critical = place["critical_batch"]
        rows.append([Cell(place["place"], name), *own, Cell(critical, str(critical)), Cell(None, units.MISSING)])
    for row in result.table:
        sizes = " → ".join(str(size) for size in dict.fromkeys(row["batches"]))
        name = texts("studies.critical_batch.whole", plan=texts(f"studies.critical_batch.{row['plan']}"), sizes=sizes)
        where = batches.index(row["batches"][-1])
        own = [losses(row["loss"]) if place == where else Cell(None, units.MISSING) for place in range(len(batches))]
        rows.append([Cell(row["plan"], name), *own, Cell(None, units.MISSING), Cell(row["steps"], f"{row['steps']:,}")])
    return _table("critical_batch", result, texts, columns, rows)


def _muon(result: Result, texts: Texts) -> Table:
    columns = [
        Column("optimizer", texts("studies.muon.optimizer"), numeric=False),
        Column("method", texts("studies.muon.bound"), numeric=False),
        Column("spikes", texts("studies.muon.spikes")),
        Column("highest", texts("studies.muon.highest")),
        Column("final_loss", texts("studies.loss")),
        Column("clip_rate", texts("studies.muon.clip_rate")),
    ]
    rows = []
    for row in result.table:
        runs: list[dict[str, Any]] = row["runs"]
        highest = [math.inf if run["highest"] is None else run["highest"] for run in runs]
        rows.append(
            [
                Cell(row["optimizer"], texts(f"studies.muon.{row['optimizer']}")),
                Cell(row["method"], texts(f"studies.muon.{row['method']}")),
                cells.spread_cell(dict(enumerate(float(run["spikes"]) for run in runs)), units.number_text),
                Cell(max(highest), units.number_text(max(highest))),
                losses([run["final_loss"] for run in runs]),
                Cell(
                    fmean(run["clip_rate"] for run in runs), units.percent_text(fmean(run["clip_rate"] for run in runs))
                ),
            ]
        )
    return _table("muon", result, texts, columns, rows)


_SHOWN = {"small_batches": _small_batches, "critical_batch": _critical_batch, "muon": _muon}
