"""Tests pass however busy the machine is: they wait long, and assert on no duration."""

import ast
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support.waiting import COLLECTIVE_SECONDS
from tightgrad.collectives import run_threaded

TESTS = Path(__file__).parent
SHORT_SECONDS = 600
WAITING = {"timeout", "timeout_seconds"}
CLOCKS = {"monotonic", "perf_counter", "process_time", "monotonic_ns", "perf_counter_ns"}
# Time-outs that a test waits for, and polls; clocks whose reading no assertion bounds from above.
MAY_WAIT_SHORTLY = {"support/ranks.py", "tightgrad_lab/network/test_network.py"}
MAY_READ_CLOCKS = {
    "support/programs.py",
    "support/ranks.py",
    "faults/kill_saves.py",
    "faults/test_processes.py",
    "field/test_out_of_memory.py",
    "tightgrad_lab/network/test_network.py",
    "tightgrad_lab/test_forking.py",
}


def files():
    return sorted(TESTS.rglob("*.py"))


def is_short(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value < SHORT_SECONDS


def short_waits(tree):
    """Lines where a small number stands as a time-out, in place of `support.waiting.patience(number)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (k.value.lineno for k in node.keywords if k.arg in WAITING and is_short(k.value))
            marks = isinstance(node.func, ast.Attribute) and node.func.attr == "timeout"
            yield from (argument.lineno for argument in node.args if marks and is_short(argument))


def clocks(tree):
    """Lines where a clock is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in CLOCKS:
            yield node.lineno


@pytest.mark.parametrize(
    ("found", "allowed", "instead"),
    [
        (short_waits, MAY_WAIT_SHORTLY, "write patience(seconds), from support.waiting"),
        (clocks, MAY_READ_CLOCKS, "no test asserts on a duration"),
    ],
)
def test_no_test_depends_on_a_quiet_machine(found, allowed, instead):
    places = {
        f"{path.relative_to(TESTS).as_posix()}:{line}"
        for path in files()
        for line in found(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not {place for place in places if place.split(":")[0] not in allowed}, instead
    assert {place.split(":")[0] for place in places} == allowed, "an exception that is none any more"


def test_the_rules_find_what_they_are_about():
    source = "import time\nrun(2, timeout=5)\n@pytest.mark.timeout(3)\ndef f():\n    start = time.perf_counter()\n"
    tree = ast.parse(source + "run(timeout_seconds=patience(5))\nrun(timeout=None)\n")
    assert list(short_waits(tree)) == [2, 3]
    assert list(clocks(tree)) == [5]


def test_hypothesis_has_no_deadline():
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check


def test_ranks_in_threads_wait_long() -> None:
    assert run_threaded.__kwdefaults__ is not None
    assert run_threaded.__kwdefaults__["timeout_seconds"] == COLLECTIVE_SECONDS
