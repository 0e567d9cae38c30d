"""Spreads, verdicts and factorial effects against values worked out by hand."""

import math

import pytest

from tightgrad_lab.report.measured.stats import COMBINATIONS, compare, factorial_effect, share_noise, spread


def test_spread_of_one_seed_has_no_deviation() -> None:
    assert spread([0.5]).sd is None
    assert spread([1.0, 2.0, 3.0]).sd == pytest.approx(1.0)


def test_share_noise_is_the_binomial_interval_of_a_difference() -> None:
    assert share_noise(0.5, 0.5, 1000) == pytest.approx(1.960 * math.sqrt(0.5 / 1000))


def test_one_seed_is_judged_by_the_test_set() -> None:
    assert compare({0: 0.87}, {0: 0.88}, samples=1000).verdict == "within"
    assert compare({0: 0.80}, {0: 0.88}, samples=1000).verdict == "short"
    assert compare({0: 0.95}, {0: 0.88}, samples=1000).verdict == "ahead"


def test_one_seed_of_a_metric_that_is_no_share_is_not_judged() -> None:
    assert compare({0: 3.1}, {0: 2.0}, samples=None).verdict == "unknown"


def test_several_seeds_are_paired() -> None:
    own, base = {0: 0.80, 1: 0.82, 2: 0.84}, {0: 0.81, 1: 0.83, 2: 0.856}
    found = compare(own, base, samples=1000)
    differences = [-0.01, -0.01, -0.016]
    mean = sum(differences) / 3
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 2)
    assert found.difference == pytest.approx(mean)
    assert found.noise == pytest.approx(4.303 * deviation / math.sqrt(3))
    assert found.verdict == "short"


def test_seeds_that_only_one_side_has_do_not_count() -> None:
    found = compare({0: 0.9, 1: 0.9, 5: 0.1}, {0: 0.9, 1: 0.9}, samples=None)
    assert found.difference == pytest.approx(0.0)


def test_effects_recover_an_additive_model() -> None:
    weights = {"clip": 0.5, "accumulate": -2.0, "compress": 3.0}
    values = {name: 10 + sum(weights.get(part, 0.0) for part in name.split("+")) for name in COMBINATIONS}
    for technique, weight in weights.items():
        assert factorial_effect(values, technique, ratio=False) == pytest.approx(weight)
    assert factorial_effect(values, "clip+compress", ratio=False) == pytest.approx(0.0)
    assert factorial_effect(values, "clip+accumulate+compress", ratio=False) == pytest.approx(0.0)


def test_effects_of_a_product_are_its_factors() -> None:
    factors = {"clip": 1.0, "accumulate": 0.25, "compress": 0.01}
    values = {name: 1000 * math.prod(factors.get(part, 1.0) for part in name.split("+")) for name in COMBINATIONS}
    assert factorial_effect(values, "compress", ratio=True) == pytest.approx(0.01)
    assert factorial_effect(values, "accumulate+compress", ratio=True) == pytest.approx(1.0)


def test_an_interaction_is_half_the_difference_of_differences() -> None:
    values = {name: 1.0 if {"clip", "compress"} <= set(name.split("+")) else 0.0 for name in COMBINATIONS}
    assert factorial_effect(values, "clip+compress", ratio=False) == pytest.approx(0.5)


def test_effects_need_all_eight_and_positive_values_for_ratios() -> None:
    values = dict.fromkeys(COMBINATIONS, 1.0)
    assert factorial_effect(values | {"none": 0.0}, "clip", ratio=True) is None
    del values["none"]
    assert factorial_effect(values, "clip", ratio=False) is None
