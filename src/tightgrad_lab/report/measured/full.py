"""What the full settings of a case gave: here, or where the published file of the package was measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.model import Cell, Column, Source, Table
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.schema import COMBINATIONS, SCHEMA, label, slug

NAME = "full.json"
PUBLISHED = Path(__file__).parents[2] / "published"


def read_full(runs: Runs, case: str) -> tuple[Mapping[str, Any], bool] | None:
    """The results, and whether this machine measured them; None if there are none.

    Raises:
        ReportError: the file is damaged.
    """
    own = runs.root / case / NAME
    path = own if own.is_file() else PUBLISHED / f"{case}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} cannot be read ({error}). Delete it.") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not found.get("variants"):
        raise ReportError(f"{path}: not results of the full settings, schema {SCHEMA}. Delete it.")
    return found, path == own


def full_table(runs: Runs, case: str, place: tuple[str, str], title: str, texts: Texts) -> Table | None:
    """A row for each variant and combination; None if the full settings were never run."""
    read = read_full(runs, case)
    if read is None:
        return None
    found, is_own = read
    share = found["metric"] == "accuracy"
    form = units.percent_text if share else units.number_text
    metric = texts.metric(str(found["metric"]))
    scores = [name for name in _scores(found) if name != found["metric"]]
    columns = [
        Column("variant", texts("col.variant"), numeric=False),
        Column("combination", texts("col.combination"), numeric=False),
        Column("value", texts("col.metric", metric=metric)),
        *(Column(name, texts("col.metric", metric=texts.metric(name))) for name in scores),
        Column("baseline", texts("col.best_baseline")),
        Column("reference", texts("col.reference")),
        Column("epochs", texts("col.epochs")),
        Column("seeds", texts("col.seeds")),
        Column("ranks", texts("col.ranks_on"), numeric=False),
        Column("wire_bytes", texts("col.wire_bytes"), "B"),
        Column("peak_memory_bytes", texts("col.peak_memory_bytes"), "B"),
        Column("seconds", texts("col.seconds"), "s"),
    ]
    rows = []
    for variant in found["variants"]:
        for combination, own in _alike(variant["runs"]):
            first = next(iter(own.values()))
            rows.append(
                [
                    Cell(variant["variant"], texts.get(f"variant.{variant['variant']}", variant["variant"])),
                    cells.combination_cell(combination, texts),
                    cells.spread_cell({seed: run["value"] for seed, run in own.items()}, form),
                    *(_score_cell(own, name, form) for name in scores),
                    _best(variant["baselines"], str(found["metric"]), bool(found["higher_is_better"]), form, texts),
                    _reference(variant.get("reference"), form),
                    Cell(first["settings"]["epochs"], str(first["settings"]["epochs"])),
                    Cell(len(own), str(len(own))),
                    Cell(first["ranks"], f"{first['ranks']} \N{MULTIPLICATION SIGN} {first['environment']['device']}"),
                    cells.spread_cell({seed: run["wire_bytes"] for seed, run in own.items()}, units.bytes_text),
                    cells.spread_cell({seed: run["peak_memory_bytes"] for seed, run in own.items()}, units.bytes_text),
                    cells.spread_cell({seed: run["seconds"] for seed, run in own.items()}, units.seconds_text),
                ]
            )
    every = [run for variant in found["variants"] for run in variant["runs"]]
    command = " · ".join(sorted({str(run["command"]) for run in every}))
    name = f"{runs.root.name}/{case}/{NAME}" if is_own else f"tightgrad_lab/published/{case}.json"
    return Table(
        slug=slug("table", *place),
        label=label(*place),
        title=title,
        caption=[texts("full.caption", metric=metric), *_lacking(found, texts)],
        columns=columns,
        rows=rows,
        source=Source((name,), 1, command),
        notes=[*_against(found, form, texts), *_where(every, is_own, texts)],
    )


def _alike(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[int, Mapping[str, Any]]]]:
    """The combination and, by seed, the runs that differ in nothing else: epochs, ranks and device are the same."""
    found: dict[tuple[int, int, int, str], dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        order = COMBINATIONS.index(run["combination"])
        key = (order, run["settings"]["epochs"], run["ranks"], str(run["environment"]["device"]))
        found.setdefault(key, {})[int(run["seed"])] = run
    return [(COMBINATIONS[key[0]], found[key]) for key in sorted(found)]


def _scores(found: Mapping[str, Any]) -> list[str]:
    names = [name for variant in found["variants"] for run in variant["runs"] for name in run["metrics"]]
    return list(dict.fromkeys(names))


def _score_cell(own: Mapping[int, Mapping[str, Any]], name: str, form: cells.Format) -> Cell:
    known = {seed: run["metrics"][name] for seed, run in own.items() if run["metrics"].get(name) is not None}
    return cells.spread_cell(known, form) if known else Cell(None, units.MISSING)


def _best(
    baselines: Mapping[str, Mapping[str, float]], metric: str, higher: bool, form: cells.Format, texts: Texts
) -> Cell:
    known = {name: scores[metric] for name, scores in baselines.items() if metric in scores}
    if not known:
        return Cell(None, units.MISSING)
    best = (max if higher else min)(known, key=lambda name: known[name])
    return Cell(known[best], f"{form(known[best])} ({texts.get(f'baseline.{best}', best)})")


def _reference(reference: Mapping[str, Any] | None, form: cells.Format) -> Cell:
    if not reference:
        return Cell(None, units.MISSING)
    return Cell(reference["value"], f"{form(reference['value'])} ({reference['source']})")


def _against(found: Mapping[str, Any], form: cells.Format, texts: Texts) -> list[str | Markup]:
    """One sentence a variant: by how much the best combination is above or below what was published."""
    notes: list[str | Markup] = []
    share, higher = found["metric"] == "accuracy", bool(found["higher_is_better"])
    for variant in found["variants"]:
        reference = variant.get("reference")
        if not reference:
            continue
        alike = _alike(variant["runs"])
        means = [sum(run["value"] for run in own.values()) / len(own) for _, own in alike]
        best = (max if higher else min)(range(len(means)), key=means.__getitem__)
        gap = means[best] - reference["value"]
        reached = gap >= 0 if higher else gap <= 0
        notes.append(
            texts(
                "full.reached" if reached else "full.not_reached",
                variant=texts.get(f"variant.{variant['variant']}", variant["variant"]),
                combination=texts.combination(alike[best][0]),
                own=form(means[best]),
                published=form(reference["value"]),
                source=reference["source"],
                gap=units.points_text(gap) if share else units.signed(gap, 3),
                epochs=next(iter(alike[best][1].values()))["settings"]["epochs"],
            )
        )
    return notes


def _lacking(found: Mapping[str, Any], texts: Texts) -> list[str]:
    """One sentence on the variants that were only trained without any of the techniques."""
    plain = [
        texts.get(f"variant.{one['variant']}", one["variant"])
        for one in found["variants"]
        if {run["combination"] for run in one["runs"]} == {"none"}
    ]
    return [texts("full.only_none", variants=texts.join(plain))] if plain else []


def _where(every: Sequence[Mapping[str, Any]], is_own: bool, texts: Texts) -> list[str]:
    """One sentence a machine."""
    machines: dict[tuple[str, ...], list[str]] = {}
    for run in every:
        about = run["environment"]
        processor = about.get("processor", units.MISSING) if about["device"] == "cpu" else about["device"]
        key = (str(run["ranks"]), str(processor), str(about.get("cores", units.MISSING)), str(about["torch"]))
        machines.setdefault(key, []).append(str(about["time"]))
    name = "full.here" if is_own else "full.elsewhere"
    return [
        texts(name, ranks=ranks, processor=processor, cores=cores, torch=torch, date=max(times)[:10])
        for (ranks, processor, cores, torch), times in machines.items()
    ]
