"""Say what the result says."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import clip_geometry

SETTINGS = {"steps": 25, "gradients": 12, "repeats": 7, "batch_size": 4, "threads": 1}
SHARES = [0.0, 0.05, 0.9, 0.05, 0.0]


def row(method: str) -> dict[str, Any]:
    straight = method in ("global_norm", "zclip")
    return {
        "method": method,
        "settings": f"Method({method})",
        "scope": "model",
        "kept": [0.7, 0.72],
        "cosine": [1.0, 1.0 - 1e-9] if straight else [0.9, 0.92],
        "bias": 0.03 if straight else 0.4,
        "memory_bytes_per_parameter": 12.0003,
        "time_ratio_to_torch": 0.98,
    }


def runs(root: Path) -> Path:
    way = {"length": 0.5, "changed": 0.011, "histogram": SHARES}
    figure = {
        "num_parameters": 3_307_008,
        "norm": 3.2157,
        "max_norm": 1.6078,
        "max_value": 0.003843,
        "rms": 0.001768,
        "reach": 4,
        "before": SHARES,
        "ways": {"norm": way | {"cosine": 1.0, "changed": 1.0}, "value": way | {"cosine": 0.5}},
    }
    return write_result(
        root, "clip_geometry", SETTINGS, figure, [row(method) for method in reversed(clip_geometry.METHODS)]
    )


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(clip_geometry.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert sum("60°" in text for text in texts) == 1
    assert any("1.1\u00a0%" in text for text in texts)
    assert "60°" in figure.alt


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    _, table = content(clip_geometry.PAIR, runs(tmp_path), language)
    assert [row[0].value for row in table.rows] == list(clip_geometry.METHODS)
    first = table.rows[0]
    assert first[2].value == pytest.approx(0.71)
    assert (first[4].text, first[5].text, first[6].text) == ("0.030", "12", "0.98×")
    straight = str(table.caption[1])
    assert "ZClip" in straight
    assert "AGC" not in straight


def test_the_sentence_turns_with_the_values(tmp_path: Path) -> None:
    figure, _ = content(clip_geometry.PAIR, runs(tmp_path), "en")
    path = tmp_path / "clip_geometry" / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    ways = result["figure"]["ways"]
    ways["norm"]["cosine"], ways["value"]["cosine"] = 0.5, 1.0
    path.write_text(json.dumps(result), encoding="utf-8")
    turned, _ = content(clip_geometry.PAIR, tmp_path, "en")
    assert "by norm turns it by 0°" in figure.shows
    assert "by norm turns it by 60°, clipping by value by 0°" in turned.shows
