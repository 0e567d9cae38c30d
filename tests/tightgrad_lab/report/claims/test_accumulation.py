"""Verdicts on accumulation turn with the rows."""

import math
from pathlib import Path
from typing import Any

import pytest

from browser.fixture_runs import write_runs
from support.handbook import batch, runs_with
from tightgrad_lab.report.claims import accumulation
from tightgrad_lab.report.claims.judgement import Number
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.stats import f_quantile, variance_ratio

FIGURE = {"base_batch": 32, "test_samples": 1000}
BASE = batch(32, "none", [0.87, 0.88, 0.89])


def judge(root: Path, claim: str, *rows: dict[str, Any]) -> Any:
    return accumulation.JUDGES[claim](runs_with(root / "runs", large_batches=(FIGURE, [BASE, *rows])))


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [([0.91, 0.92, 0.93], "supported"), ([0.871, 0.879, 0.891], "mixed"), ([0.7, 0.71, 0.72], "refuted")],
)
def test_convergence(tmp_path: Path, accuracy: list[float], verdict: str) -> None:
    """Ahead per sample and per step; as good in fewer steps; neither."""
    found = judge(tmp_path, "convergence", batch(256, "none", [0.5, 0.5, 0.5]), batch(256, "linear", accuracy))
    assert found.verdict == verdict
    assert found.findings[0].facts["rule"].keys == ("large_batches.figure.rule.linear",)
    assert found.findings[0].facts["difference"].value == pytest.approx(sum(accuracy) / 3 - 0.88)


def test_the_largest_batch_that_holds_is_named(tmp_path: Path) -> None:
    rows = [batch(128, "none", [0.87, 0.881, 0.89]), batch(512, "lars", [0.871, 0.88, 0.89])]
    found = judge(tmp_path, "convergence", *rows, batch(1024, "none", [0.6, 0.61, 0.62]))
    assert found.findings[0].facts["batch"].value == 512


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [([0.8799, 0.88, 0.8801], "supported"), ([0.86, 0.88, 0.90], "refuted")],
)
def test_stability_is_the_spread_over_seeds(tmp_path: Path, accuracy: list[float], verdict: str) -> None:
    rows = [batch(size, "none", accuracy) for size in (128, 256, 512)]
    found = judge(tmp_path, "stable_convergence", *rows)
    assert found.verdict == verdict
    facts = found.findings[0].facts
    assert facts["low"].value < facts["ratio"].value < facts["high"].value


def test_divergence_of_larger_batches_speaks_against_stability(tmp_path: Path) -> None:
    rows = [batch(size, "none", [0.8799, 0.88, 0.8801]) for size in (128, 256, 512)]
    rows.append(batch(512, "linear", [0.1, 0.1, 0.1], diverged=2))
    assert judge(tmp_path, "stable_convergence", *rows).verdict == "mixed"


def test_memory_of_the_image_case(tmp_path: Path) -> None:
    found = accumulation.memory(Runs(write_runs(tmp_path / "runs")))
    assert found.verdict == "supported"
    ratio = found.findings[0].facts["ratio"].value
    assert ratio == pytest.approx(342 / 394)


def test_without_a_run_everything_is_open(tmp_path: Path) -> None:
    for name, judge_one in accumulation.JUDGES.items():
        found = judge_one(runs_with(tmp_path / "runs"))
        assert (found.verdict, found.findings) == ("open", ()), name
        assert found.needs, name


@pytest.mark.parametrize(
    ("own", "base", "quantile"), [(2, 2, 39.0), (4, 2, 39.248), (2, 10, 5.456), (10, 10, 3.717), (1, 1, 647.79)]
)
def test_f_quantiles_are_those_of_the_tables(own: int, base: int, quantile: float) -> None:
    assert f_quantile(0.975, own, base) == pytest.approx(quantile, rel=2e-4)
    low, high = variance_ratio(1.0, own, base)
    assert math.isclose(low, 1 / f_quantile(0.975, own, base))
    assert low < 1 < high


def test_accumulation_saves_bytes_and_takes_time(tmp_path: Path) -> None:
    points = [{"micro_batch": size, "step_seconds": seconds} for size, seconds in ((1, 0.3), (32, 0.15))]
    row = {"micro_batches": 16, "wire_bytes": 10, "wire_bytes_if_each_synced": 160}
    runs = runs_with(tmp_path / "runs", accumulation_memory=({"points": points}, []), window_timeline=({}, [row]))
    found = accumulation.efficiency(runs)
    assert found.verdict == "mixed"
    time, once = found.findings
    assert (time.verdict, once.verdict) == ("refuted", "supported")
    ratio = time.facts["ratio"]
    assert isinstance(ratio, Number)
    assert ratio.value == pytest.approx(2.0)
    assert accumulation.efficiency(Runs(tmp_path)).verdict == "open"
