"""The rules give the rates they promise, and a batch that is accumulated is a batch."""

from dataclasses import replace

import pytest
import torch

from tightgrad_lab.cases.image import ImageCase
from tightgrad_lab.experiments.large_batches.experiment import EXPERIMENT, TUNED, best_rates, make_runs, make_tuning
from tightgrad_lab.experiments.large_batches.train import MICRO_BATCH, RULES, Run, make_optimizer, train
from tightgrad_lab.experiments.workers import run_all

RUN = Run("linear", 512, seed=0, epochs=4, warmup_epochs=1, base_batch=32, rates=TUNED)
STEPS = 40


def rates_of(run: Run) -> list[float]:
    torch.manual_seed(0)
    optimizer, scheduler = make_optimizer(torch.nn.Linear(3, 2), run, STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("rule", "highest"),
    [("none", 0.01), ("sqrt", 0.04), ("linear", 0.16), ("lars", 3.0 * 16), ("lamb", 0.04)],
)
def test_the_rate_of_a_batch_16_times_as_large(rule: str, highest: float) -> None:
    optimizer, _ = make_optimizer(torch.nn.Linear(3, 2), replace(RUN, rule=rule), STEPS)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(highest)


def test_warm_up_starts_at_the_base_rate_under_the_cosine() -> None:
    plain = rates_of(RUN)
    constant = rates_of(replace(RUN, rule="linear_constant"))
    gradual = rates_of(replace(RUN, rule="linear_gradual"))
    warm = STEPS // RUN.epochs
    assert plain[0] == pytest.approx(0.16)
    assert constant[0] == gradual[0] == pytest.approx(0.01)
    assert constant[warm - 1] == pytest.approx(plain[warm - 1] / 16)
    assert constant[warm:] == pytest.approx(plain[warm:])
    assert gradual[warm:] == pytest.approx(plain[warm:])
    assert gradual[:warm] == sorted(gradual[:warm])


def test_the_smallest_batch_is_the_same_under_all_rules_of_sgd() -> None:
    found = {
        tuple(rates_of(replace(RUN, batch=32, rule=name))) for name, rule in RULES.items() if rule.optimizer == "sgd"
    }
    assert len(found) == 1


def test_each_optimizer_is_tuned_and_the_best_rate_wins() -> None:
    settings = EXPERIMENT.settings(full=True)
    tuning = make_tuning(settings)
    assert all(run.held_out == 1000 and run.batch == 32 for run in tuning)
    assert len(tuning) == sum(len(rates) for rates in settings.rates.values())
    tried = [{"accuracy": 0.8 if run.rates.get("lamb") == 0.003 else 0.5} for run in tuning]
    assert best_rates(settings, tuning, tried) == {"sgd": 0.005, "lars": 1.0, "lamb": 0.003}
    assert make_tuning(EXPERIMENT.settings(full=False)) == []


def test_every_batch_meets_every_rule() -> None:
    settings = EXPERIMENT.settings(full=True)
    runs = make_runs(settings, TUNED)
    assert len(runs) == settings.seeds * (3 + len(settings.batches) * len(RULES))
    assert len({(run.batch, run.rule, run.seed) for run in runs}) == len(runs)


def test_a_run_learns_and_another_ends_in_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    train_samples, test_samples = ImageCase().load()
    few = replace(train_samples, pixels=train_samples.pixels[:384], labels=train_samples.labels[:384])
    monkeypatch.setattr(ImageCase, "load", lambda self: (few, test_samples))
    run = replace(RUN, rule="none", batch=2 * MICRO_BATCH, epochs=3, warmup_epochs=1, rates={"sgd": 0.05})
    found = train(run)
    assert found["steps"] == 6
    assert found["losses"][-1] < found["losses"][0]
    assert not found["diverged"]
    lost = train(replace(run, rates={"sgd": 1e30}))
    assert lost["diverged"]
    assert lost["losses"][-1] is None
    assert len(lost["losses"]) == 3


def _square(number: int) -> int:
    if number < 0:
        raise ValueError("as asked")
    return number * number


def test_jobs_come_back_in_their_order() -> None:
    told: list[float] = []
    assert run_all(_square, [3, 1, 2], lambda share, text: told.append(share), share=(0.5, 1.0)) == [9, 1, 4]
    assert told[-1] == 1.0
    with pytest.raises(ValueError, match="as asked"):
        run_all(_square, [-1, 2], lambda share, text: None)
