"""Trainings of the studies of batch size: branches, equal text, the choice of rates, critical sizes."""

import pytest
import torch

import tightgrad as tg
from tightgrad_lab.experiments.batch_size import critical_batch, small_batches
from tightgrad_lab.experiments.batch_size.train import Phase, Training

SMALL = small_batches.Settings(32, (1, 4), 0.95, (1e-3, 2e-3), seeds=2)


def weights(training: Training) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in training.model.parameters()]


def test_a_branch_starts_where_its_trunk_is_and_leaves_it_alone() -> None:
    trunk = Training(0)
    trunk.run(Phase(2, 4, 1e-3, 0.99))
    before = weights(trunk)
    branch = trunk.branch()
    branch.run(Phase(4, 8, 1e-3, 0.99))
    assert all(torch.equal(one, other) for one, other in zip(before, weights(trunk), strict=True))
    again = trunk.branch()
    again.run(Phase(4, 8, 1e-3, 0.99))
    assert all(torch.equal(one, other) for one, other in zip(weights(branch), weights(again), strict=True))


def test_all_batches_see_the_same_text() -> None:
    pieces = [torch.cat(list(Training(3)._batches(Phase(batch, 8, 0.0, 0.9), batch))) for batch in (1, 4)]
    assert torch.equal(*pieces)


def test_the_last_choice_takes_what_scale_adam_says() -> None:
    fixed, held, rule = (small_batches._run(SMALL, choice, 1, 4e-3, 0) for choice in small_batches.CHOICES)
    scaled = tg.scale_adam(4e-3, (0.9, 0.95), 4, 1)
    assert (fixed.beta2, fixed.learning_rate) == (0.95, 4e-3)
    assert (held.beta2, held.learning_rate) == (scaled["betas"][1], 4e-3)
    assert (rule.beta2, rule.learning_rate) == (scaled["betas"][1], scaled["lr"])


def test_rates_are_chosen_by_loss_and_a_loss_that_is_not_finite_loses() -> None:
    runs = [small_batches._run(SMALL, "fixed", 4, rate, 0) for rate in SMALL.rates]
    assert small_batches.best_rates(dict(zip(runs, (2.0, None), strict=True))) == {("fixed", 4): 1e-3}
    assert small_batches.best_rates(dict(zip(runs, (2.0, 1.9), strict=True))) == {("fixed", 4): 2e-3}


def test_rows_have_every_seed_at_the_best_rate() -> None:
    best = {("fixed", 1): 1e-3, ("held", 1): 2e-3, ("fixed", 4): 1e-3}
    tried = {small_batches._run(SMALL, choice, batch, rate, 0): 2.0 for choice, batch in best for rate in SMALL.rates}
    rest = dict.fromkeys(small_batches.make_runs(SMALL, best), 3.0)
    rows = small_batches.measured(SMALL, tried | rest, best).table
    assert [(row["batch"], row["choice"]) for row in rows] == [(1, "fixed"), (1, "held"), (1, "rule"), (4, "fixed")]
    assert [row["loss"] for row in rows] == [[2.0, 3.0], [2.0, 3.0], [3.0, 3.0], [2.0, 3.0]]
    assert [row["steps"] for row in rows] == [32, 32, 32, 8]


def test_a_short_training_learns_and_says_how_many_steps() -> None:
    settings = critical_batch.Settings((3e-3,), 0.99, 16, (16, 32), 16, (4, 8), 0.02, 64, seeds=1)
    grown = critical_batch.train(critical_batch.Whole(settings, 3e-3, 0, "growing", (4, 4, 8)))
    assert grown["steps"] == 16 // 4 + 16 // 4 + 16 // 8 + 16 // 8
    assert grown["loss"] < 5.5
    found = critical_batch.branch(critical_batch.Branching(settings, 3e-3, 0))
    assert {place: list(losses) for place, losses in found.items()} == {16: [4, 8], 32: [4, 8]}


@pytest.mark.parametrize(
    ("losses", "size"),
    [([2.0, 2.01, 2.5], 8), ([2.0, 2.5, 2.0], 4), ([2.0, 1.9, 1.8], 16), ([2.0, float("inf"), 2.0], 4)],
)
def test_the_critical_size_is_the_largest_up_to_which_no_loss_is_higher(losses: list[float], size: int) -> None:
    assert critical_batch.critical(list(zip((4, 8, 16), losses, strict=True)), 0.02) == size
