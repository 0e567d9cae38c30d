"""Faults of a loop besides its gradients are named, each alone; loops beside them that are right are not accused."""

from pathlib import Path

import pytest

from support.audits import Remarks, audited

SCRIPT = Path(__file__).parent / "routines.py"
WRONG = {
    "cleared_to_none": "cleared",
    "cleared_to_zero": "cleared",
    "clip_of_nothing": "clip of nothing",
    "copied": "copied",
    "elsewhere": "error",
    "eval_mode": "eval mode",
    "first_rank_alone": "error",
    "frozen": "frozen",
    "mass_by_the_batch_size": "mass",
    "mass_divided_by_ranks_again": "mass",
    "mass_spawned": "mass",
    "mass_of_a_step_each_micro_batch": "mass",
    "never_scaled": "never scaled",
    "no_graph": "no graph",
    "no_optimizer": "no optimizer",
    "nothing_to_train": "nothing to train",
    "same_data": "same data",
    "same_order": "same order",
    "schedule": "schedule",
    "undefined": "undefined",
    "value_before_unscale": "clip before unscale",
}
NOTES = {
    "fine_invented_data": {"same data"},
    "fine_probe": {"left out"},
    "fine_schedule_in_micro_batches": {"schedule"},
    "fine_weight_of_a_loss": {"mass of its own"},
    "fine_value_and_kept_losses": {"clip by value", "graph kept"},
}
FINE = [
    line.removeprefix("def ").partition("(")[0]
    for line in SCRIPT.read_text(encoding="utf-8").splitlines()
    if line.startswith("def fine_")
]
RANKS = {"first_rank_alone": 2, "fine_invented_data": 2, "mass_divided_by_ranks_again": 2, "same_data": 2}


@pytest.fixture(scope="module")
def remarks() -> Remarks:
    return audited(SCRIPT, {name: RANKS.get(name, 1) for name in [*WRONG, *FINE]})


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_named_and_nothing_else(name: str, remarks: Remarks) -> None:
    assert [one["kind"] for one in remarks[name] if one["wrong"]] == [WRONG[name]]


@pytest.mark.parametrize("name", FINE)
def test_a_loop_that_is_right_is_not_accused(name: str, remarks: Remarks) -> None:
    assert [one["cause"] for one in remarks[name] if one["wrong"]] == []
    assert NOTES.get(name, set()) <= {one["kind"] for one in remarks[name]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mass_by_the_batch_size", "0.25 times its due: the loss is divided by 8, and a step takes 2 micro-batches"),
        ("mass_of_a_step_each_micro_batch", "divided by 4, and every micro-batch is followed by a step"),
        ("mass_divided_by_ranks_again", "averaged over 2 ranks, and divided by 2 once more"),
        ("no_optimizer", "2 parameters get a gradient and are held by no optimizer"),
        ("eval_mode", "dropout is on in the first 2 backwards and off in the 10 after"),
        ("copied", "updated 2 times a step"),
        ("mass_spawned", "the loss is not divided by the number of micro-batches (2)"),
        ("first_rank_alone", "rank 1 has taken 0 steps where another has taken 6"),
        ("elsewhere", "trains in processes that it starts itself"),
    ],
)
def test_words(name: str, words: str, remarks: Remarks) -> None:
    (fault,) = [one for one in remarks[name] if one["wrong"]]
    assert words in fault["cause"]
    assert fault["cure"] or fault["kind"] == "error"
