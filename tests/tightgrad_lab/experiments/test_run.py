"""An experiment is measured once, kept whole, and measured again when what it depends on has changed."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tightgrad.core.config import to_config
from tightgrad_lab.errors import ArgumentError, RunError
from tightgrad_lab.experiments import catalogue, run
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.measured.results import read_result
from tightgrad_lab.schema import command, number, published_files

NAME = "window_timeline"


@dataclass(frozen=True)
class Steps:
    steps: int


class Counting(Experiment[Steps]):
    reads = ("image/*.json",)

    def __init__(self, lacks: str | None = None, fails: bool = False) -> None:
        self.runs = 0
        self.lacks = lacks
        self.fails = fails

    def settings(self, *, full: bool) -> Steps:
        return Steps(100 if full else 10)

    def run(self, settings: Steps, report: Report) -> Measured:
        self.runs += 1
        report(0.5, "half")
        if self.fails:
            raise ZeroDivisionError("as asked")
        return Measured({"values": [settings.steps]}, [{"steps": settings.steps}], "cpu", "gloo")

    def missing(self) -> str | None:
        return self.lacks


def go(experiment: Counting, runs: Path, *, full: bool = False, again: bool = False) -> str:
    told: list[float] = []
    outcome = run.run_experiment(NAME, experiment, runs, lambda done, text: told.append(done), full=full, again=again)
    return outcome.status


def test_measured_once(tmp_path: Path) -> None:
    one = Counting()
    assert [go(one, tmp_path), go(one, tmp_path)] == ["measured", "unchanged"]
    assert one.runs == 1
    assert go(one, tmp_path, again=True) == "measured"
    assert go(one, tmp_path, full=True) == "measured"
    assert one.runs == 3


def test_a_file_that_it_reads_is_an_input(tmp_path: Path) -> None:
    one = Counting()
    go(one, tmp_path)
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "new.json").write_text("{}")
    assert go(one, tmp_path) == "measured"


def test_the_report_reads_what_was_written(tmp_path: Path) -> None:
    go(Counting(), tmp_path)
    result = read_result(tmp_path, NAME)
    assert result is not None
    assert result.figure == {"values": [10]}
    assert result.table == ({"steps": 10},)
    assert result.settings == {"steps": 10}
    assert result.environment["backend"] == "gloo"
    assert result.published is None
    assert result.source.patterns == (f"{tmp_path.name}/window_timeline/result.json",)
    assert read_result(tmp_path, "accumulation_memory") is None


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    go(Counting(), tmp_path)
    path = tmp_path / "window_timeline" / "result.json"
    path.write_text(path.read_text().replace('"table": [', '"table": ["x",'))
    with pytest.raises(ReportError, match=r"window_timeline/result.json.*list of objects.*--only 3"):
        read_result(tmp_path, NAME)
    path.write_text("{")
    with pytest.raises(ReportError, match="cannot be read"):
        read_result(tmp_path, NAME)


def test_a_failure_leaves_the_traceback_and_the_result_before(tmp_path: Path) -> None:
    go(Counting(), tmp_path)
    with pytest.raises(RunError, match="window_timeline failed: ZeroDivisionError: as asked"):
        go(Counting(fails=True), tmp_path, again=True)
    assert "ZeroDivisionError" in (tmp_path / "window_timeline" / "error.txt").read_text()
    assert read_result(tmp_path, NAME) is not None


def test_what_a_machine_lacks_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "published"
    elsewhere.mkdir()
    monkeypatch.setattr(run, "PUBLISHED", elsewhere)
    lacking = Counting(lacks="it needs root")
    assert go(lacking, runs) == "missing"
    assert read_result(runs, NAME) is None
    go(Counting(), tmp_path / "other")
    result = (tmp_path / "other" / "window_timeline" / "result.json").read_text()
    (elsewhere / "window_timeline.json").write_text(result)
    assert go(lacking, runs) == "published"
    shown = read_result(runs, NAME)
    assert shown is not None
    assert shown.published == "it needs root"
    assert lacking.runs == 0


def test_what_was_measured_here_is_not_replaced_by_what_is_published(tmp_path: Path) -> None:
    go(Counting(), tmp_path)
    assert go(Counting(lacks="it needs root"), tmp_path) == "unchanged"
    found = read_result(tmp_path, NAME)
    assert found is not None
    assert found.published is None


def test_published_results_are_whole() -> None:
    for path in published_files():
        data = json.loads(path.read_text(encoding="utf-8"))
        assert {"schema", "pair", "command", "settings", "environment", "figure", "table"} <= data.keys(), path.name
        assert number(path.stem) == data["pair"]
        assert path.stat().st_size < 400_000


@pytest.mark.parametrize("name", catalogue.names())
def test_every_experiment_of_the_catalogue_is_there(name: str) -> None:
    one = catalogue.experiment(name)
    assert one.settings(full=False) is not None
    assert one.settings(full=True) is not None


def test_a_number_without_an_experiment() -> None:
    with pytest.raises(ArgumentError, match="no experiment 13"):
        catalogue.experiment(13)


@pytest.mark.parametrize("path", published_files(), ids=lambda path: path.stem)
def test_the_settings_of_a_published_result_are_those_of_its_command(path: Path) -> None:
    if path.stem not in catalogue.MODULES:
        return
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["command"] in (command(path.stem), command(path.stem, full=True))
    settings = catalogue.experiment(path.stem).settings(full=data["command"].endswith("--full"))
    expected = json.loads(json.dumps(to_config(settings)))
    expected.pop("frameworks", None)  # versions: of the machine
    assert {name: value for name, value in data["settings"].items() if name != "frameworks"} == expected
