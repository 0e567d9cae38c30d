"""What is stored as a full result is what the command in it makes: its settings, all its rows, all its seeds."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tightgrad.core.config import to_config
from tightgrad_lab.cases import CASES
from tightgrad_lab.experiments.catalogue import experiment, name_of
from tightgrad_lab.experiments.large_batches.experiment import TUNED, LargeBatches, make_runs
from tightgrad_lab.schema import COMBINATIONS, PUBLISHED, command, published_files

INSTALLED = {"frameworks"}
"""Settings that say what is installed, which differs between machines."""


def options(line: str) -> dict[str, list[str]]:
    """The options of a command line, each with all its values."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in shlex.split(line)[2:]:
        if word.startswith("--"):
            name = word
            found.setdefault(name, [])
        elif name:
            found[name].append(word)
            name = ""
    return found


def stored(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def wrong_settings(name: str, result: dict[str, Any]) -> list[str]:
    """The settings in which a result differs from what its command runs."""
    full = "--full" in options(result["command"])
    expected = json.loads(json.dumps(to_config(experiment(name).settings(full=full))))
    keys = (expected.keys() | result["settings"].keys()) - INSTALLED
    return [key for key in sorted(keys) if expected.get(key) != result["settings"].get(key)]


@pytest.mark.parametrize("path", published_files(), ids=lambda path: path.stem)
def test_the_settings_are_those_of_the_command(path: Path) -> None:
    result = stored(path)
    asked = options(result["command"])
    assert [name_of(one) for one in asked["--only"]] == [path.stem]
    assert result["command"] == command(path.stem, full="--full" in asked)
    assert wrong_settings(path.stem, result) == []


def test_another_setting_is_found_out() -> None:
    result = stored(PUBLISHED / "large_batches.json")
    result["settings"]["epochs"] += 1
    assert wrong_settings("large_batches", result) == ["epochs"]


@pytest.mark.parametrize("path", published_files(), ids=lambda path: path.stem)
def test_every_row_has_every_seed(path: Path) -> None:
    result = stored(path)
    seeds = result["settings"].get("seeds")
    for row in result["table"]:
        for key in ("accuracy", "loss"):
            if isinstance(row.get(key), list) and isinstance(seeds, int):
                assert len(row[key]) == seeds, (row, key)


def test_the_large_batches_have_every_row() -> None:
    result = stored(PUBLISHED / "large_batches.json")
    expected = {(run.batch, run.rule) for run in make_runs(LargeBatches().settings(full=True), TUNED)}
    assert {(row["batch"], row["rule"]) for row in result["table"]} == expected


@pytest.mark.parametrize("case", [case for case in CASES if (PUBLISHED / f"{case}.json").is_file()])
def test_the_runs_of_a_case_are_those_of_their_commands(case: str) -> None:
    made: dict[str, set[tuple[str, int]]] = {}
    for variant in stored(PUBLISHED / f"{case}.json")["variants"]:
        for run in variant["runs"]:
            asked = options(run["command"])
            assert shlex.split(run["command"])[:3] == ["tightgrad", "lab", case]
            assert "--full" in asked
            assert asked.get("--variant", [variant["variant"]]) == [variant["variant"]]
            assert asked.get("--epochs", [str(run["settings"]["epochs"])]) == [str(run["settings"]["epochs"])]
            made.setdefault(run["command"], set()).add((run["combination"], run["seed"]))
    for line, found in made.items():
        asked = options(line)
        seeds = range(int(asked["--seeds"][0]))
        expected = {(one, seed) for one in asked.get("--combination", COMBINATIONS) for seed in seeds}
        assert found == expected, line
