"""A malformed file stops the report with one line: which file, what is wrong, what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from browser.fixture_runs import summary, write_run
from tightgrad_lab import report
from tightgrad_lab.report.measured.files import Runs, find


def test_no_runs_folder(tmp_path: Path) -> None:
    with pytest.raises(report.ReportError, match=r"no folder .*absent\. Run `tightgrad lab` first"):
        report.build(tmp_path / "absent", tmp_path / "out")


def change(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "summary.json").write_text(json.dumps(summary("clip", 0) | values), encoding="utf-8")

    return apply


def drop(key: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        kept = {name: value for name, value in summary("clip", 0).items() if name != key}
        (folder / "summary.json").write_text(json.dumps(kept), encoding="utf-8")

    return apply


def overwrite(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "not json": (overwrite("summary.json", "{"), "summary.json: not JSON"),
    "not an object": (overwrite("config.json", "[]"), "config.json: a list where a JSON object is expected"),
    "missing key": (drop("wire_bytes"), 'summary.json: the key "wire_bytes" is missing'),
    "wrong type": (change(wire_bytes="many"), '"wire_bytes" is "many", expected a finite number >= 0'),
    "negative": (change(peak_memory_bytes=-1), '"peak_memory_bytes" is -1, expected a finite number >= 0'),
    "not finite": (change(value=float("nan")), '"value" is NaN, expected a finite number'),
    "other schema": (change(schema=2), '"schema" is 2, expected 1'),
    "other combination": (change(combination="none"), '"combination" is "none", expected "clip"'),
    "other seed": (change(seed=7), '"seed" is 7, expected 0'),
    "bad epoch": (change(epochs=[{"epoch": -1}]), 'epochs[0]: "epoch" is -1'),
    "bad step": (overwrite("steps.jsonl", '{"step": 0, "wire_bytes": 1}\n{"step"\n'), "steps.jsonl: line 2: not JSON"),
    "no environment": (lambda folder: (folder / "environment.json").unlink(), "environment.json: the file is missing"),
    "no steps": (lambda folder: (folder / "steps.jsonl").unlink(), "steps.jsonl: the file is missing"),
    "unknown combination": (lambda folder: folder.parent.rename(folder.parents[1] / "magic") and None, "'magic'"),
    "unknown seed": (lambda folder: folder.rename(folder.parent / "seedX") and None, "'seedX'"),
}


@pytest.mark.parametrize("name", CASES)
def test_malformed_run(tmp_path: Path, name: str) -> None:
    spoil, expected = CASES[name]
    spoil(write_run(tmp_path / "runs", "clip", 0))
    with pytest.raises(report.ReportError) as caught:
        report.build(tmp_path / "runs", tmp_path / "out")
    message = str(caught.value)
    assert expected in message
    assert "run `tightgrad lab image` again" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"schema": 1, "case": "image", "stages": []}', '"stages" is not a list'),
        ('{"schema": 1, "case": "image", "stages": [{"bytes": 3}]}', 'stages[0]: the key "id" is missing'),
        ('{"schema": 1, "case": "image", "stages": [{"id": "data", "shape": "big"}]}', '"shape" is "big"'),
        ('{"schema": 1, "case": "image", "stages": [{"id": "data", "seconds": "slow"}]}', '"seconds" is "slow"'),
    ],
)
def test_malformed_flow(tmp_path: Path, text: str, expected: str) -> None:
    write_run(tmp_path / "runs", "clip", 0)
    (tmp_path / "runs" / "image" / "flow.json").write_text(text, encoding="utf-8")
    with pytest.raises(report.ReportError) as caught:
        report.build(tmp_path / "runs", tmp_path / "out")
    assert expected in str(caught.value)


def test_runs_come_in_the_order_of_the_factorial(tmp_path: Path) -> None:
    for combination in ("compress", "none", "clip"):
        write_run(tmp_path / "runs", combination, 0)
    case = Runs(tmp_path / "runs").case("image")
    assert case is not None
    assert list(case.combinations) == ["none", "clip", "compress"]


def test_find_searches_nested_json() -> None:
    assert find({"a": [{"b": {"max_norm": 2.0}}]}, "max_norm") == 2.0
    assert find({"a": [1, "x"]}, "max_norm") is None
