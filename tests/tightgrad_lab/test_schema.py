"""Published results have the keys that the types of tables and figures say, and values of their kinds."""

import json
from typing import Any

import pytest

from support.row_types import wrong
from tightgrad_lab import schema
from tightgrad_lab.schema import accumulation, clipping, compression

TYPES: dict[str, tuple[Any, Any]] = {
    "accuracy_vs_bytes": (compression.AccuracyVsBytesFigure, compression.AccuracyVsBytesRow),
    "clip_stages": (clipping.ClipStagesFigure, None),
    "large_batches": (accumulation.LargeBatchesFigure, accumulation.LargeBatchesRow),
    "link_speeds": (compression.LinkSpeedsFigure, compression.LinkSpeedsRow),
    "temporal_order": (clipping.TemporalOrderFigure, clipping.TemporalOrderRow),
    "window_states": (accumulation.WindowStatesFigure, accumulation.WindowStatesRow),
}


@pytest.mark.parametrize("name", TYPES)
def test_published_results_have_the_keys_and_kinds_of_their_types(name: str) -> None:
    result = json.loads((schema.PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    figure, row = TYPES[name]
    assert wrong(result["figure"], figure, "figure") == []
    assert [at for one in result["table"] for at in wrong(one, row or Any, "row")] == []


def test_the_check_sees_missing_further_and_wrong_values() -> None:
    lane = {"lane": "fold", "seconds": {"norm": 1.0}, "memory_bytes": {"norm": None}, "num_parameters": 3}
    whole = {**lane, "grad_norm": 1.0, "clip_coef": 1}
    assert wrong(whole, clipping.ClipLane, "lane") == []
    assert wrong({**whole, "num_parameters": 3.5}, clipping.ClipLane, "lane") == ["lane.num_parameters"]
    assert wrong({**whole, "memory_bytes": {"norm": "4"}}, clipping.ClipLane, "lane") == ["lane.memory_bytes['norm']"]
    assert sorted(wrong({**lane, "grad_norm": 1.0, "more": 0}, clipping.ClipLane, "lane")) == [
        "lane.clip_coef",
        "lane.more",
    ]
