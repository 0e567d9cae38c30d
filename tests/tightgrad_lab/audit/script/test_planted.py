"""Faults of terms, divisors, targets and data are named, each alone; loops that are right are not accused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import support.audits
from support.waiting import patience

SCRIPTS = [Path(__file__).parent / name for name in ("planted.py", "planted_targets.py")]
KINDS = {
    "undivided": "undivided term",
    "apart": "divided apart",
    "padding": "padding counts",
    "back": "ignored targets are back",
    "shifted_twice": "shifted twice",
    "shifted_not": "not shifted",
    "same": "same micro-batch",
    "changed": "changed data",
    "mass": "mass",
}
"""How a function's name begins -> what must be named."""
NAMES = {
    line.removeprefix("def ").removesuffix("():"): script
    for script in SCRIPTS
    for line in script.read_text(encoding="utf-8").splitlines()
    if line.startswith("def ") and line.endswith("():")
}
FINE = [name for name in NAMES if name.startswith("fine_")]
WRONG = {name: kind for name in NAMES for start, kind in KINDS.items() if name.startswith(start)}
WRONG |= dict.fromkeys(["shifted_twice", "shifted_twice_padded"], "shifted twice")
RANKS = {"fine_processes": 2, "mass_of_processes": 2, "mass_of_spawned": 2, "fine_spawned": 2}
NOTES = {"fine_autoencoder": "not shifted", "fine_clipped_slices": "changed data"}


@pytest.fixture(scope="module")
def remarks() -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for script in SCRIPTS:
        names = [f"{name}:{RANKS.get(name, 1)}" for name in [*WRONG, *FINE] if NAMES[name] == script]
        command = [sys.executable, support.audits.__file__, str(script), *names]
        run = subprocess.run(command, capture_output=True, text=True, timeout=patience(300), check=False)
        assert run.returncode == 0, run.stderr
        found |= json.loads(run.stdout)
    return found


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_named_and_nothing_else(name: str, remarks: dict[str, list[dict[str, Any]]]) -> None:
    (fault,) = [one for one in remarks[name] if one["wrong"]]
    assert fault["kind"] == WRONG[name]
    assert fault["cure"]


@pytest.mark.parametrize("name", FINE)
def test_a_loop_that_is_right_is_not_accused(name: str, remarks: dict[str, list[dict[str, Any]]]) -> None:
    assert [one["cause"] for one in remarks[name] if one["wrong"]] == []
    assert name not in NOTES or NOTES[name] in {one["kind"] for one in remarks[name]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("undivided_penalty", "a term of the loss times 0.001 counts 4 times a step"),
        ("undivided_auxiliary", "a term of the loss counts 4 times a step"),
        ("apart_last", "count 1, 1, 1, 0.25 times the one that counts most: only the last one is divided by 4"),
        ("apart_all_but_last", "3 of 4 are divided by 4"),
        ("apart_running_number", "each is divided by its own number in the window"),
        ("apart_running_total", "backward is called on a running total"),
        ("shifted_twice", "the target of a token stands 2 places after it"),
        ("same_buffer", "the 4 micro-batches of a step are the same data, other data in the next step"),
    ],
)
def test_words(name: str, words: str, remarks: dict[str, list[dict[str, Any]]]) -> None:
    (fault,) = [one for one in remarks[name] if one["wrong"]]
    assert words in fault["cause"]
