"""Verdicts on compression turn with the rows."""

from pathlib import Path
from typing import Any

import pytest

from browser.fixture_runs import write_runs
from support.drawing import write_result
from support.handbook import compressed, runs_with
from tightgrad_lab.report.claims import compression
from tightgrad_lab.report.measured.files import Runs

FIGURE = {"test_samples": 1000}
DENSE = compressed("dense", "none", [0.87, 0.88, 0.89], 1.0, family="dense")
LIKE_DENSE, BELOW = [0.871, 0.879, 0.891], [0.81, 0.82, 0.83]


def judge(root: Path, claim: str, *rows: dict[str, Any]) -> Any:
    return compression.JUDGES[claim](runs_with(root / "runs", accuracy_vs_bytes=(FIGURE, [DENSE, *rows])))


@pytest.mark.parametrize(
    ("claim", "method"), [("quantisation", "int8"), ("pruning", "threshold"), ("sparsification", "topk_1")]
)
@pytest.mark.parametrize(
    ("plain", "corrected", "verdict"),
    [
        (LIKE_DENSE, LIKE_DENSE, "supported"),
        (BELOW, LIKE_DENSE, "mixed"),
        (BELOW, BELOW, "refuted"),
    ],
)
def test_accuracy_is_kept_or_not(
    tmp_path: Path, claim: str, method: str, plain: list[float], corrected: list[float], verdict: str
) -> None:
    rows = [compressed(method, "none", plain, 8.0), compressed(method, "error_feedback", corrected, 8.0)]
    found = judge(tmp_path, claim, *rows)
    assert found.verdict == verdict
    facts = found.findings[0].facts
    assert facts["difference"].value == pytest.approx(sum(plain) / 3 - 0.88)
    assert facts["difference"].noise > 0
    assert found.findings[0].source.patterns == ("runs/accuracy_vs_bytes/result.json",)


def test_other_methods_do_not_speak_for_a_claim(tmp_path: Path) -> None:
    found = judge(tmp_path, "pruning", compressed("topk_1", "none", LIKE_DENSE, 8.0))
    assert (found.verdict, found.needs) == ("open", ("accuracy_vs_bytes",))


def test_what_the_full_result_lacks_is_taken_from_the_own_one(tmp_path: Path) -> None:
    own = runs_with(tmp_path / "runs", accuracy_vs_bytes=(FIGURE, [DENSE, compressed("int8", "none", BELOW, 4.0)]))
    full = [DENSE, compressed("topk_1", "none", LIKE_DENSE, 8.0)]
    write_result(tmp_path / "runs" / "published", "accuracy_vs_bytes", {}, FIGURE, full)
    assert compression.JUDGES["sparsification"](own).verdict == "supported"
    assert compression.JUDGES["quantisation"](own).verdict == "refuted"


def test_a_diverged_method_does_not_keep_the_accuracy(tmp_path: Path) -> None:
    found = judge(tmp_path, "quantisation", compressed("int8", "none", [], 4.0, diverged=3))
    assert found.verdict == "refuted"


def test_one_seed_is_judged_by_the_test_set(tmp_path: Path) -> None:
    dense = compressed("dense", "none", [0.88], 1.0)
    for value, verdict in ((0.87, "supported"), (0.80, "refuted")):
        table = [dense, compressed("int8", "none", [value], 4.0)]
        found = compression.quantisation(runs_with(tmp_path / str(value), accuracy_vs_bytes=(FIGURE, table)))
        assert found.verdict == verdict


@pytest.mark.parametrize(
    ("factors", "verdict"), [((4.0, 90.0), "supported"), ((0.9, 90.0), "mixed"), ((0.9, 0.8), "refuted")]
)
def test_bytes_are_saved_or_not(tmp_path: Path, factors: tuple[float, float], verdict: str) -> None:
    rows = [compressed(name, "none", LIKE_DENSE, f) for name, f in zip(("int8", "topk_1"), factors, strict=True)]
    found = judge(tmp_path, "bytes", *rows)
    assert found.verdict == verdict
    assert found.findings[0].facts["least"].value == pytest.approx(min(factors))
    assert found.findings[0].facts["most"].value == pytest.approx(max(factors))


@pytest.mark.parametrize(("accuracy", "verdict"), [([0.9, 0.91, 0.92], "supported"), (LIKE_DENSE, "refuted")])
def test_loss_after_the_same_steps(tmp_path: Path, accuracy: list[float], verdict: str) -> None:
    found = judge(tmp_path, "compressed_convergence", compressed("int8", "none", accuracy, 4.0))
    assert found.verdict == verdict


def test_image_case_says_what_its_rows_say(tmp_path: Path) -> None:
    """The fixture's compressed step sends 98.2 times fewer bytes and takes longer."""
    runs = Runs(write_runs(tmp_path / "runs"))
    assert compression.saved_bytes(runs).verdict == "supported"
    slower = compression.efficiency(runs)
    assert slower.verdict == "refuted"
    assert slower.findings[0].facts["ratio"].value == pytest.approx(0.055 / 0.042)


def test_without_a_run_everything_is_open(tmp_path: Path) -> None:
    runs = runs_with(tmp_path / "runs")
    for name, judge_one in compression.JUDGES.items():
        found = judge_one(runs)
        assert (found.verdict, found.findings) == ("open", ()), name
        assert found.needs, name


def test_published_full_results_are_preferred_to_short_ones(tmp_path: Path) -> None:
    runs_with(
        tmp_path / "runs" / "published", accuracy_vs_bytes=(FIGURE, [DENSE, compressed("int8", "none", BELOW, 4.0)])
    )
    runs = runs_with(
        tmp_path / "runs", accuracy_vs_bytes=(FIGURE, [DENSE, compressed("int8", "none", LIKE_DENSE, 4.0)])
    )
    found = compression.quantisation(runs)
    assert found.verdict == "refuted"
    assert found.findings[0].source.patterns == ("runs/published/accuracy_vs_bytes/result.json",)
