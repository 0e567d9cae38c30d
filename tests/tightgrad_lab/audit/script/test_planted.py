"""Faults of terms, divisors, targets and data are named, each alone; loops that are right are not accused."""

from pathlib import Path

import pytest

from support.audits import Remarks, audited

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
def remarks() -> Remarks:
    found: Remarks = {}
    for script in SCRIPTS:
        found |= audited(script, {name: RANKS.get(name, 1) for name in [*WRONG, *FINE] if NAMES[name] == script})
    return found


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_named_and_nothing_else(name: str, remarks: Remarks) -> None:
    (fault,) = [one for one in remarks[name] if one["wrong"]]
    assert fault["kind"] == WRONG[name]
    assert fault["cure"]


@pytest.mark.parametrize("name", FINE)
def test_a_loop_that_is_right_is_not_accused(name: str, remarks: Remarks) -> None:
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
def test_words(name: str, words: str, remarks: Remarks) -> None:
    (fault,) = [one for one in remarks[name] if one["wrong"]]
    assert words in fault["cause"]
