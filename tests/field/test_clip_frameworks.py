"""The same clipping in other frameworks, on random trees: results agree to float32 rounding."""

from typing import Any

import pytest

from tightgrad_lab.bench.frameworks import compare_frameworks

AGREEMENT = 1e-6


def compared(framework: str) -> list[dict[str, Any]]:
    rows = compare_frameworks(3, frameworks=[framework], num_trees=6, repeats=1)
    for row in rows:
        assert row["tightgrad_error"] < AGREEMENT, row
        assert row["tightgrad_smallest_scale"] <= row["smallest_scale"], row
        assert row["tightgrad_largest_scale"] == 1e30 >= row["largest_scale"], row
    return rows


def test_torch(field_row) -> None:
    """Its float32 sum over a million numbers is off by more than that itself."""
    rows = {row["operation"]: row for row in compared("torch")}
    for row in rows.values():
        assert row["largest_relative_difference"] <= row["framework_error"] + AGREEMENT, row
    assert rows["torch.nn.utils.clip_grad_value_"]["largest_relative_difference"] == 0.0
    row = rows["torch.nn.utils.get_total_norm"]
    theirs, ours = row["framework_error"], row["tightgrad_error"]
    wrong = theirs > AGREEMENT
    field_row("C15 norm of a million numbers", "torch", f"{theirs:.1e} off", f"{ours:.1e} off", peer_is_wrong=wrong)


def test_optax() -> None:
    pytest.importorskip("optax")
    rows = compared("optax")
    assert {row["counterpart"] for row in rows} >= {"tg.clip_grad_norm_", "tg.clip.BlockRMS", "tg.clip.AGC"}
    for row in rows:
        assert row["largest_relative_difference"] < AGREEMENT, row


def test_tensorflow() -> None:
    pytest.importorskip("tensorflow")
    rows = compared("tensorflow")
    assert {row["counterpart"] for row in rows} >= {"tg.clip_grad_norm_", "tg.clip.PerTensorNorm"}
    for row in rows:
        assert row["largest_relative_difference"] < AGREEMENT, row
