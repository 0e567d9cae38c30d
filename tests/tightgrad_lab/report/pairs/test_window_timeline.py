"""Say what the result says."""

import re
from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import window_timeline

SETTINGS = {"samples": 16, "ranks": 2, "rounds": 7, "seeds": 3, "windows": 7}


def events() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for rank in range(2):
        for index in range(2):
            about = {"rank": rank, "micro_batch": index, "weight": 100.0 + 10 * rank + index}
            found.append({"kind": "forward", "begin": 0.03 * index, "end": 0.03 * index + 0.01, **about})
            found.append({"kind": "backward", "begin": 0.03 * index + 0.01, "end": 0.03 * index + 0.03, **about})
        last = {"rank": rank, "micro_batch": None, "weight": None}
        found.append({"kind": "sync", "begin": 0.05, "end": 0.058, **last})
        found.append({"kind": "step", "begin": 0.06, "end": 0.065, **last})
    return found


def runs(root: Path) -> Path:
    figure = {"micro_batches": 2, "ranks": 2, "events": events(), "total_weight": 422.0}
    table = [
        {
            "micro_batches": k,
            "samples": 16 // k,
            "peak_memory_bytes": 20_000_000 // k,
            "seconds_per_sample": 0.005,
            "seconds_quartiles": [0.004, 0.006],
            "wire_bytes": 1_882_144,
            "wire_bytes_if_each_synced": 1_882_112 * k,
            "relative_error": [1e-7, 1.2e-7, 1.1e-7],
            "relative_error_of_loop": [0.01 * k, 0.02 * k, 0.03 * k],
        }
        for k in (1, 4)
    ]
    return write_result(
        root, "window_timeline", SETTINGS, figure | {"parameters": 470_528, "wire_bytes": 1_882_144}, table
    )


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_micro_batch_shows_its_weight(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(window_timeline, runs(tmp_path), language)
    shown = drawn_texts(figure, language, layout)
    assert {"100", "101", "110", "111"} <= set(shown)
    assert "100, 101; 110, 111" in figure.alt


@pytest.mark.parametrize("language", ["en", "zh"])
def test_table(tmp_path: Path, language: str) -> None:
    _, table = content(window_timeline, runs(tmp_path), language)
    by_key = [dict(zip([column.key for column in table.columns], row, strict=True)) for row in table.rows]
    assert [row["micro_batches"].value for row in by_key] == [1, 4]
    assert [row["wire_bytes_if_each_synced"].value for row in by_key] == [1_882_112, 4 * 1_882_112]
    assert by_key[1]["relative_error_of_loop"].value == pytest.approx(0.08)
    assert "(0.04–0.1" in by_key[1]["relative_error_of_loop"].text


def test_nothing_without_a_result(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from tightgrad_lab.report.texts import load

    assert window_timeline.content(SimpleNamespace(root=tmp_path), load("en")) is None


@pytest.mark.parametrize("errors", [[1.44e-7, 1.46e-7], [0.0951, 0.0958, 0.0949], [9.96e-3, 1.02e-2], [0.3]])
def test_a_range_contains_its_mean(errors: list[float]) -> None:
    """With one digit fewer than the mean, 0.0951 to 0.0958 was shown as (0.1 to 0.1)."""
    shown = window_timeline._error(errors).text
    found = re.fullmatch(r"(\S+) \((\S+)–(\S+)\)", str(shown).replace("−", "-"))
    mean, low, high = (float(value) for value in found.groups())
    assert low <= mean <= high
    assert low == pytest.approx(min(errors), rel=0.05)
    assert high == pytest.approx(max(errors), rel=0.05)
