"""The pages of the case studies: scores in their own sense, simple methods, other variants, the full settings."""

import json
import shutil
from pathlib import Path

import pytest

from browser.fixture_runs import write_runs
from support.drawing import LAYOUTS, drawn_texts
from tightgrad_lab.report import ReportError
from tightgrad_lab.report.measured import full
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.model import FigureSpec, Table
from tightgrad_lab.report.pairs import language_cases, series_case
from tightgrad_lab.report.texts import load

LANGUAGES = ("en", "zh")
WHOLE = "clip+accumulate+compress"


def _other_case(root: Path, case: str, scores: dict[str, float], folder: str = "", command: str = "") -> Path:
    """The fixture's image runs as runs of another case: made-up numbers, as those are."""
    target = root / case / folder
    shutil.copytree(root / "image", target, dirs_exist_ok=True)
    metric = next(iter(scores))
    for path in target.rglob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        if "case" in data:
            data["case"] = case
        if path.name == "summary.json":
            gain = data["value"] - 0.88
            data |= {"metric": metric, "value": scores[metric] + gain, "higher_is_better": metric != "mse"}
            data["metrics"] = {name: value + gain for name, value in scores.items()}
            data["variant"] = folder.rpartition("/")[2] or "default"
            data["epochs"] = [epoch | {"value": scores[metric] + gain} for epoch in data["epochs"]]
        if path.name == "config.json":
            data["command"] = command or f"tightgrad lab {case}"
        path.write_text(json.dumps(data), encoding="utf-8")
    return target


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(full, "PUBLISHED", tmp_path / "published")
    root = write_runs(tmp_path / "runs")
    series = _other_case(root, "series", {"mse": 0.5, "mae": 0.47})
    baselines = {"naive": {"mse": 0.72, "mae": 0.53}, "mean": {"mse": 1.03, "mae": 0.75}}
    (series / "baselines.json").write_text(json.dumps({"baselines": baselines}), encoding="utf-8")
    _other_case(root, "translation", {"bleu": 15.0, "bleu_beam": 18.0})
    return Runs(root)


def _blocks(pair, runs: Runs, language: str = "en") -> dict[str, FigureSpec | Table]:
    found = pair.content(runs, load(language))
    assert found is not None
    return {block.slug: block for block in found.blocks}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(runs: Runs, language: str, layout) -> None:
    for pair, slugs in (
        (language_cases.PAIR, ("figure16c", "figure16d")),
        (series_case.PAIR, ("figure17", "figure17b")),
    ):
        blocks = _blocks(pair, runs, language)
        for slug in slugs:
            assert drawn_texts(blocks[slug], language, layout)


def test_lower_is_better_for_errors(runs: Runs) -> None:
    table = _blocks(series_case.PAIR, runs)["table17"]
    assert isinstance(table, Table)
    keys = [column.key for column in table.columns]
    rows = {row[0].value: dict(zip(keys, row, strict=True)) for row in table.rows}
    assert rows["none"]["mae"].value == pytest.approx(rows["none"]["value"].value - 0.03)
    assert rows["naive"]["value"].value == 0.72
    assert rows["naive"]["wire_bytes"].value is None
    assert rows["accumulate+compress"]["difference"].value < 0
    assert any(
        "Better than the best simple method" in str(note) and "last value 0.720" in str(note) for note in table.notes
    )


def test_over_seeds_a_larger_error_falls_short(tmp_path: Path) -> None:
    root = write_runs(tmp_path / "runs", seeds=3)
    series = _other_case(root, "series", {"mse": 0.5})
    for path in series.glob("clip/seed*/summary.json"):
        data = json.loads(path.read_text())
        path.write_text(json.dumps(data | {"value": 0.9 + 0.001 * data["seed"]}))
    table = _blocks(series_case.PAIR, Runs(root))["table17"]
    assert isinstance(table, Table)
    verdicts = {
        row[0].value: next(cell.value for cell in row if cell.value in ("short", "ahead", "within", "base"))
        for row in table.rows
    }
    assert verdicts["clip"] == "short"


def test_both_scores_of_a_translation_are_shown(runs: Runs) -> None:
    table = _blocks(language_cases.PAIR, runs)["table16d"]
    assert isinstance(table, Table)
    headings = [column.heading for column in table.columns]
    assert headings[1:3] == ["Test BLEU", "Test BLEU, beam of 4"]
    assert table.rows[0][2].value == pytest.approx(table.rows[0][1].value + 3)


def test_other_variants_stand_beside_the_default(runs: Runs) -> None:
    assert "table17b" not in _blocks(series_case.PAIR, runs)
    _other_case(runs.root, "series", {"mse": 0.3, "mae": 0.2}, "variants/dlinear-24")
    _other_case(runs.root, "series", {"mse": 0.3, "mae": 0.2}, "variants/big", "tightgrad lab series --full")
    table = _blocks(series_case.PAIR, Runs(runs.root))["table17b"]
    assert isinstance(table, Table)
    assert [(row[0].text, row[1].value) for row in table.rows[2:]] == [
        ("DLinear, 336 h → 24 h", "none"),
        ("DLinear, 336 h → 24 h", WHOLE),
    ]


def _results(value: float) -> dict:
    environment = {
        "torch": "2.13.0",
        "processor": "a processor",
        "cores": 2,
        "device": "cpu",
        "time": "2026-11-25T00:00:00+00:00",
    }
    run = {
        "combination": "none",
        "seed": 0,
        "value": value,
        "metrics": {"mse": value, "mae": 0.4},
        "wire_bytes": 10,
        "peak_memory_bytes": 10,
        "seconds": 14.0,
        "ranks": 2,
        "command": "tightgrad lab series --full",
        "settings": {"epochs": 10},
        "environment": environment,
    }
    variant = {
        "variant": "etth1-nlinear-96",
        "baselines": {"naive": {"mse": 1.29, "mae": 0.7}},
        "reference": {"metric": "mse", "value": 0.374, "source": "Zeng et al. 2023, NLinear"},
        "runs": [run],
    }
    return {"schema": 1, "case": "series", "metric": "mse", "higher_is_better": False, "variants": [variant]}


def test_published_results_are_shown_where_none_are_own(runs: Runs) -> None:
    full.PUBLISHED.mkdir()
    (full.PUBLISHED / "series.json").write_text(json.dumps(_results(0.381)))
    table = _blocks(series_case.PAIR, runs)["table17b"]
    assert isinstance(table, Table)
    assert table.source.patterns == ("tightgrad_lab/published/series.json",)
    notes = " ".join(map(str, table.notes))
    assert "short of the published 0.374 (Zeng et al. 2023, NLinear); difference +0.007" in notes
    assert "not measured on this machine" in notes
    (runs.root / "series" / "full.json").write_text(json.dumps(_results(0.37)))
    own = _blocks(series_case.PAIR, runs)["table17b"]
    assert isinstance(own, Table)
    notes = " ".join(map(str, own.notes))
    assert own.source.patterns == ("runs/series/full.json",)
    assert "at or better than the published 0.374" in notes
    assert "Measured on this machine" in notes


def test_runs_of_other_lengths_and_machines_are_told_apart(runs: Runs) -> None:
    results = _results(0.381)
    (variant,) = results["variants"]
    (run,) = variant["runs"]
    longer = {**run, "value": 0.37, "metrics": {"mse": 0.37, "mae": 0.4}, "settings": {"epochs": 20}, "ranks": 1}
    longer["environment"] = {**run["environment"], "device": "a GPU"}
    variant["runs"] = [longer, run, {**run, "seed": 1}]
    (runs.root / "series" / "full.json").write_text(json.dumps(results))
    table = _blocks(series_case.PAIR, runs)["table17b"]
    assert isinstance(table, Table)
    place = [column.key for column in table.columns].index
    shown = [[row[place(key)].text for key in ("epochs", "seeds", "ranks")] for row in table.rows]
    assert shown == [["10", "2", "2 × cpu"], ["20", "1", "1 × a GPU"]]
    notes = [str(note) for note in table.notes]
    assert "after 20 epochs, at or better" in notes[0]
    assert ["a GPU" in note for note in notes[1:]] == [True, False]


def test_a_damaged_file_is_named(runs: Runs) -> None:
    (runs.root / "series" / "full.json").write_text("{")
    with pytest.raises(ReportError, match=r"full\.json cannot be read"):
        series_case.PAIR.content(runs, load("en"))
    (runs.root / "series" / "full.json").unlink()
    (runs.root / "series" / "baselines.json").write_text('{"baselines": {"naive": {"mse": null}}}')
    with pytest.raises(ReportError, match=r"baselines\.json"):
        Runs(runs.root).case("series")


def test_what_is_published_is_whole() -> None:
    folder = Path(full.__file__).parents[2] / "published"
    for case in ("image", "text", "translation", "series"):
        path = folder / f"{case}.json"
        if not path.is_file():
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        assert data["case"] == case
        assert path.stat().st_size < 100_000
        for variant in data["variants"]:
            assert variant["baselines"]
            assert all("--full" in run["command"] and run["environment"]["processor"] for run in variant["runs"])
