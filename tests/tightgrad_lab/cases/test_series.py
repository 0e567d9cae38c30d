"""Windows keep the parts of a series apart; what is not observed is neither trained on nor scored."""

import csv

import pytest
import torch

from tightgrad_lab.cases import load_case
from tightgrad_lab.cases.series import ett
from tightgrad_lab.cases.series.data import HOURS_A_DAY, filled, load_hours, part_bounds, windows
from tightgrad_lab.cases.series.models import DLinear, NLinear, naive, seasonal_naive


def test_no_window_leaves_its_part():
    hours = load_hours()
    for part in ("train", "validation", "test"):
        start, end = part_bounds(part, len(hours.target))
        found = windows(hours, part, history=72, horizon=24)
        assert int(found.origins.min()) - 72 >= start
        assert int(found.origins.max()) + 24 <= end


def test_variants_forecast_the_same_hours():
    short, long = load_case("series", "lstm-24").load()[1], load_case("series", "dlinear-24").load()[1]
    assert torch.equal(short.origins, long.origins)


def test_a_gap_takes_the_value_before_it():
    values = torch.tensor([torch.nan, 1.0, torch.nan, torch.nan, 2.0])
    assert filled(values, 0.0).tolist() == [0.0, 1.0, 1.0, 1.0, 2.0]


def test_what_was_not_observed_counts_nowhere():
    case = load_case("series", "lstm-24")
    _, test = case.load()
    gaps = ~test.hours.observed[test.origins.unsqueeze(1) + torch.arange(24)]
    index = gaps.any(1).nonzero()[:4, 0]
    past, future, observed = case.batch(test, index)
    torch.manual_seed(0)
    model = case.model()
    spoiled = future + 100.0 * ~observed
    assert torch.equal(case.loss(model, (past, future, observed)), case.loss(model, (past, spoiled, observed)))
    assert float(case.weight((past, future, observed))) == float(observed.sum()) < observed.numel()


def test_simple_methods():
    past = torch.arange(48.0).view(1, 48, 1)
    assert naive(past, 3).tolist() == [[47.0, 47.0, 47.0]]
    assert seasonal_naive(past, 26, HOURS_A_DAY)[0].tolist() == [*range(24, 48), 24, 25]


@pytest.mark.parametrize("network", [DLinear, NLinear])
def test_linear_models_follow_a_shift_of_the_series(network):
    torch.manual_seed(0)
    model, past = network(48, 6), torch.randn(3, 48, 1)
    moved = model(past + 5.0) - model(past)
    if network is NLinear:
        assert torch.allclose(moved, torch.full_like(moved, 5.0), atol=1e-4)
    assert moved.shape == (3, 6)


def test_ett_is_split_as_published(tmp_path, monkeypatch):
    with (tmp_path / "ETTh1.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", *"abcdefg"])
        writer.writerows([f"hour {n}", *([float(n % 24)] * 7)] for n in range(17420))
    monkeypatch.setattr(ett, "need", lambda name: tmp_path)
    case = ett.EttCase(NLinear, 336, 96, "etth1-nlinear-96")
    train, test = case.load()
    assert (len(train), len(test)) == (8209, 2785)
    assert int(train.origins.max()) + 96 == ett.TRAIN_END
    assert int(test.origins.min()) == ett.TEST_BEGIN
    assert float(train.values[: ett.TRAIN_END].mean()) == pytest.approx(0, abs=1e-4)
    past, future = case.batch(test, torch.arange(5))
    assert past.shape == (5, 336, 7)
    assert case.model()(past).shape == future.shape == (5, 96, 7)
    assert case.baselines()["seasonal_naive"]["mse"] == pytest.approx(0, abs=1e-6)
    assert case.baselines()["naive"]["mse"] > 0.5
