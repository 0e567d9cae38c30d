"""A step is called shorter only if its interval says so."""

import json
from pathlib import Path

import pytest

from browser.fixture_runs import summary, write_run
from tightgrad_lab.report.claims.times import step_time
from tightgrad_lab.report.measured.files import Runs


def runs(root: Path, own: list[float], base: list[float]) -> Runs:
    """One seed of each; the steps take these seconds."""
    for name, seconds in (("none", base), ("compress", own)):
        folder = write_run(root, name, 0)
        steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()][:1]
        steps = [steps[0] | {"step": i, "seconds": value} for i, value in enumerate([9.0, *seconds])]
        (folder / "steps.jsonl").write_text("\n".join(map(json.dumps, steps)))
        middle = sorted(seconds)[len(seconds) // 2]
        (folder / "summary.json").write_text(json.dumps(summary(name, 0) | {"step_seconds": middle}))
    return Runs(root)


STEADY, RESTLESS = [0.02, 0.021, 0.019, 0.02] * 16, [0.01] * 16 + [0.03] * 16 + [0.012] * 16 + [0.04] * 16


@pytest.mark.parametrize(
    ("factor", "base", "verdict", "sure"),
    [(0.5, STEADY, "supported", True), (2.0, STEADY, "refuted", True), (0.9, RESTLESS, "refuted", False)],
)
def test_one_seed(tmp_path: Path, factor: float, base: list[float], verdict: str, sure: bool) -> None:
    case = runs(tmp_path / "runs", [value * factor for value in base], base).case("image")
    assert case is not None
    found = step_time(case, "compress")
    assert found is not None
    said, facts = found
    low, ratio, high = (facts[key].value for key in ("low", "ratio", "high"))  # type: ignore[union-attr]
    assert said == verdict
    assert ratio == pytest.approx(factor)
    assert low <= ratio <= high
    assert (low > 1 or high < 1) == sure


def test_several_seeds_are_compared_in_pairs(tmp_path: Path) -> None:
    for seed, (own, base) in enumerate([(0.05, 0.1), (0.11, 0.2), (0.2, 0.41)]):
        for name, value in (("none", base), ("compress", own)):
            folder = write_run(tmp_path / "runs", name, seed)
            (folder / "summary.json").write_text(json.dumps(summary(name, seed) | {"step_seconds": value}))
    case = Runs(tmp_path / "runs").case("image")
    assert case is not None
    found = step_time(case, "compress")
    assert found is not None
    assert found[0] == "supported"
