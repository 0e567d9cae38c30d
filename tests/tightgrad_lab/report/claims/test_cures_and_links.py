"""Verdicts on cures, on memory and on links turn with the rows."""

from pathlib import Path
from typing import Any

import pytest

from support.handbook import runs_with
from tightgrad_lab.report import faq
from tightgrad_lab.report.claims import accumulation, compression, cures
from tightgrad_lab.report.measured.files import Runs


def problem(name: str, cured: int, **more: Any) -> dict[str, Any]:
    row = {"problem": name, "metric": "loss", "before": [2.0, 2.2], "after": [0.5, 0.7], "named": 2, "cured": cured}
    return row | more


@pytest.mark.parametrize(
    ("claim", "names"),
    [
        ("cure_vanishing", ["over_clipping"]),
        ("cure_memory", ["graph_kept_alive", "out_of_memory"]),
        ("cure_precision", ["precision_lost", "stale_warm_start"]),
    ],
)
@pytest.mark.parametrize(("counts", "verdict"), [((2, 2), "supported"), ((1, 2), "mixed"), ((0, 0), "refuted")])
def test_cures(tmp_path: Path, claim: str, names: list[str], counts: tuple[int, int], verdict: str) -> None:
    table = [problem(name, counts[i]) for i, name in enumerate(names)] + [problem("rank_drift", 0)]
    found = cures.cured(runs_with(tmp_path / "runs", common_failures=({}, table)), claim)
    assert found.verdict == verdict
    assert found.findings[0].facts["before"].value == pytest.approx(2.1)


def test_a_run_that_was_not_finite_has_no_mean(tmp_path: Path) -> None:
    table = [problem("over_clipping", 2, before=[None, 2.0])]
    found = cures.cured(runs_with(tmp_path / "runs", common_failures=({}, table)), "cure_vanishing")
    assert found.findings[0].facts["before"].keys == ("common_failures.table.diverged",)


def link(rate: float, gain: float, ranks: int = 2) -> dict[str, Any]:
    return {
        "ranks": ranks,
        "bits_per_second": rate,
        "best": "8-bit blocks",
        "pays": gain > 1 / 0.95,
        "gain": gain,
        "best_seconds": 1.0 / gain,
        "dense_seconds": 1.0,
    }


def links(root: Path, *gains: float) -> Runs:
    return runs_with(root, link_speeds=({}, [link(10.0 ** (7 + place), gain) for place, gain in enumerate(gains)]))


@pytest.mark.parametrize(
    ("gains", "efficiency", "convergence"),
    [
        ((40.0, 5.0), "supported", "supported"),
        ((40.0, 0.8), "mixed", "supported"),
        ((0.9, 0.8), "refuted", "refuted"),
    ],
)
def test_links(tmp_path: Path, gains: tuple[float, float], efficiency: str, convergence: str) -> None:
    runs = links(tmp_path / "runs", *gains)
    found = compression.efficiency(runs)
    assert found.verdict == efficiency
    assert found.findings[0].facts["most"].value == max(gains)
    assert compression.convergence(runs).verdict == convergence


def window(k: int, memory: float, error: float) -> dict[str, Any]:
    return {
        "micro_batches": k,
        "peak_memory_bytes": memory,
        "relative_error": [error, error / 2],
        "relative_error_of_loop": [0.1, 0.3],
    }


@pytest.mark.parametrize(("error", "verdict"), [(2e-7, "supported"), (0.2, "refuted")])
def test_a_large_batch_is_imitated_or_not(tmp_path: Path, error: float, verdict: str) -> None:
    table = [window(1, 100.0, 0.0), window(8, 40.0, error)]
    found = accumulation.large_batch(runs_with(tmp_path / "runs", window_timeline=({}, table)))
    assert found.verdict == verdict
    assert found.findings[0].facts["worst"].value == error


@pytest.mark.parametrize(("memory", "verdict"), [(40.0, "supported"), (120.0, "refuted")])
def test_memory(tmp_path: Path, memory: float, verdict: str) -> None:
    table = [window(1, 100.0, 0.0), window(8, memory, 1e-7)]
    found = accumulation.memory(runs_with(tmp_path / "runs", window_timeline=({}, table)))
    assert found.verdict == verdict
    assert found.findings[0].facts["ratio"].value == memory / 100


@pytest.mark.parametrize("problem_name", ["over_clipping", "idle_clipping"])
def test_where_to_set_the_bound_is_answered_from_what_the_doctor_changed(tmp_path: Path, problem_name: str) -> None:
    plans = {"plan_before": {"clip": {"max_norm": 0.001}}, "plan_after": {"clip": {"max_norm": 1.1}}}
    found = faq.max_norm(runs_with(tmp_path / "runs", common_failures=({}, [problem(problem_name, 2, **plans)])))
    facts = found[0].facts
    assert (facts["before"].value, facts["after"].value) == (0.001, 1.1)
    assert facts["difference"].value == pytest.approx(-1.5)
