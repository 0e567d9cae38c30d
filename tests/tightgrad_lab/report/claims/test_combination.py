"""The verdict on combining the three turns with the image case's rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from browser.fixture_runs import summary, write_run
from tightgrad_lab.report.claims import combination
from tightgrad_lab.report.measured.files import Runs

ALL = combination.ALL


def runs(root: Path, **changed: Any) -> Runs:
    for name in ("none", ALL):
        for seed in range(3):
            path = write_run(root, name, seed) / "summary.json"
            own = summary("none", seed) | {"combination": name}
            path.write_text(json.dumps(own | (changed if name == ALL else {})), encoding="utf-8")
    return Runs(root)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"step_seconds": 0.01, "wire_bytes": 5}, "supported"),
        ({"step_seconds": 0.1, "wire_bytes": 5}, "mixed"),
        ({"step_seconds": 0.1, "wire_bytes": 10**12, "value": 0.1}, "refuted"),
        ({"step_seconds": 0.01, "wire_bytes": 5, "skipped_steps": 3}, "mixed"),
    ],
)
def test_the_verdict_turns(tmp_path: Path, changed: dict[str, Any], verdict: str) -> None:
    assert combination.combined(runs(tmp_path / "runs", **changed)).verdict == verdict


def test_without_all_three_it_is_open(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "none", 0)
    assert combination.combined(Runs(tmp_path / "runs")).verdict == "open"
