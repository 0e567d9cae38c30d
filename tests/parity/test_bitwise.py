"""Where the arithmetic is the same, the bits are: no tolerance in this file."""

import pytest
import torch

import tightgrad as tg
from parity.against_torch import (
    PLANS,
    State,
    adamw,
    run_both,
    run_ddp_against_torch,
    run_without_batches_on_rank_0,
    sgd,
)
from support.ranks import run_ranks


def assert_bitwise(ours: State, theirs: State) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
def test_the_empty_plan_is_plain_pytorch(make_optimizer) -> None:
    theirs, ours = run_both(lambda module: module, make_optimizer, tg.Plan(), 1)
    assert_bitwise(ours, theirs)


@pytest.mark.parametrize("name", [name for name, (_, micro_batches) in PLANS.items() if micro_batches == 1])
def test_one_process_without_anything_to_do_is_plain_pytorch(name: str) -> None:
    theirs, ours = run_both(lambda module: module, sgd, PLANS[name][0], 1)
    assert_bitwise(ours, theirs)


def test_a_power_of_two_of_micro_batches_is_the_common_loop() -> None:
    with pytest.warns(tg.TightGradWarning, match="BatchNorm in training mode"):
        theirs, ours = run_both(lambda module: module, sgd, tg.Plan(accumulate=tg.Accumulate(micro_batches=4)), 4)
    assert_bitwise(ours, theirs)


@pytest.mark.parametrize("optimizers_in_turn", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_ranks_are_ddp_with_its_options_and_buffers(optimizers_in_turn: bool) -> None:
    """Equal batches on two ranks: dividing before or after the sum gives the same bits, as does either order."""
    for rank, results in enumerate(run_ranks(2, run_ddp_against_torch, optimizers_in_turn)):
        for key, (theirs, ours) in results.items():
            for name, tensor in theirs.items():
                assert torch.equal(ours[name], tensor), f"{name} on rank {rank} of {key}"


def test_a_rank_without_batches_does_not_hang_a_model_with_buffers() -> None:
    (first, first_error), (second, second_error) = run_ranks(2, run_without_batches_on_rank_0)
    assert_bitwise(first, second)
    assert "rank 0 has no batch at all" in first_error
    assert first_error == second_error
