"""Published results have the keys that the types of tables and figures say, and values of their kinds."""

import json
import types
import typing
from typing import Any

import pytest

from tightgrad_lab import schema

TYPES: dict[str, tuple[Any, Any]] = {
    "accuracy_vs_bytes": (schema.AccuracyVsBytesFigure, schema.AccuracyVsBytesRow),
    "clip_stages": (schema.ClipStagesFigure, None),
    "large_batches": (schema.LargeBatchesFigure, schema.LargeBatchesRow),
    "link_speeds": (schema.LinkSpeedsFigure, schema.LinkSpeedsRow),
    "temporal_order": (schema.TemporalOrderFigure, schema.TemporalOrderRow),
}


def wrong(value: Any, kind: Any, path: str) -> list[str]:
    """Where a value is not of a kind that these types are made of."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return []
    if typing.is_typeddict(kind):
        keys = [f"{path}.{key}" for key in set(value) ^ kind.__required_keys__ if key not in kind.__optional_keys__]
        hints = typing.get_type_hints(kind)
        return keys + [at for key in hints if key in value for at in wrong(value[key], hints[key], f"{path}.{key}")]
    if origin is types.UnionType:
        return [] if any(not wrong(value, one, path) for one in arguments) else [path]
    if origin in (list, dict) and not isinstance(value, origin):
        return [path]
    if origin is list:
        return [at for place, one in enumerate(value) for at in wrong(one, arguments[0], f"{path}[{place}]")]
    if origin is dict:
        return [at for key, one in value.items() for at in wrong(one, arguments[1], f"{path}[{key!r}]")]
    accepted = (int, float) if kind is float else kind
    return [] if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)) else [path]


@pytest.mark.parametrize("name", TYPES)
def test_published_results_have_the_keys_and_kinds_of_their_types(name: str) -> None:
    result = json.loads((schema.PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    figure, row = TYPES[name]
    assert wrong(result["figure"], figure, "figure") == []
    assert [at for one in result["table"] for at in wrong(one, row or Any, "row")] == []


def test_the_check_sees_missing_further_and_wrong_values() -> None:
    lane = {"lane": "fold", "seconds": {"norm": 1.0}, "memory_bytes": {"norm": None}, "num_parameters": 3}
    whole = {**lane, "grad_norm": 1.0, "clip_coef": 1}
    assert wrong(whole, schema.ClipLane, "lane") == []
    assert wrong({**whole, "num_parameters": 3.5}, schema.ClipLane, "lane") == ["lane.num_parameters"]
    assert wrong({**whole, "memory_bytes": {"norm": "4"}}, schema.ClipLane, "lane") == ["lane.memory_bytes['norm']"]
    assert sorted(wrong({**lane, "grad_norm": 1.0, "more": 0}, schema.ClipLane, "lane")) == [
        "lane.clip_coef",
        "lane.more",
    ]
