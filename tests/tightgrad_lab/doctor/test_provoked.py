"""Every problem of table 14, provoked by a real training, is named, and is gone once the doctor's cure is run."""

from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from support.row_types import wrong
from tightgrad_lab.doctor.rules import RULES
from tightgrad_lab.experiments.common_failures.experiment import Job, provoke, row
from tightgrad_lab.experiments.common_failures.runs import FAILURES
from tightgrad_lab.forking import process_context
from tightgrad_lab.schema.failures import FailureRow

BETTER = {
    "loss": lambda before, after: before is None or after < 0.75 * before,
    "growth": lambda before, after: after < 0.1 * before,
    "steps": lambda before, after: before == 20 and after == 23,
    "difference": lambda before, after: before > 0.01 and after < 1e-6,
    "gain": lambda before, after: before > 50 and abs(after - 1) < 1e-4,
}

ABOUT_MEMORY = {"graph_kept_alive", "out_of_memory"}


def provoked_in_new_process(job: Job) -> dict[str, Any]:
    """As the experiment does: growth of memory does not show where a heap has room to spare, and a limit of memory is
    none where earlier tests' tensors are freed meanwhile.
    """
    with ProcessPoolExecutor(1, process_context()) as pool:
        return pool.submit(provoke, job).result()


@pytest.mark.parametrize("problem", FAILURES)
def test_named_and_cured(problem: str) -> None:
    job = Job(problem, seed=7, steps=120)
    found = provoked_in_new_process(job) if problem in ABOUT_MEMORY else provoke(job)
    assert found["named"], [said["problem"] for said in found["said"]]
    assert found["said_after"] == []
    assert wrong(row(problem, [found]), FailureRow, "row") == []
    assert BETTER[FAILURES[problem].metric](found["before"], found["after"]), (found["before"], found["after"])


def test_every_rule_is_provoked() -> None:
    by_hand = {"all_masked"}  # no run of the course masks labels; test_rules has this rule
    assert set(FAILURES) | by_hand == set(RULES)
