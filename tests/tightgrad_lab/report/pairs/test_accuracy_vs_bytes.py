"""Say what the result says."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.drawing import joined
from tightgrad_lab.report.pairs import accuracy_vs_bytes
from tightgrad_lab.report.texts import load

SETTINGS = {"epochs": 3, "batch_size": 32, "density_warmup_epochs": 1, "seeds": 3, "ranks": 2}
FIGURE = {"test_samples": 1000, "steps": 564, "dense_below": 1024, "dgc_local_clip": 2.0, "dgc_start_density": 0.25}
FACTORS = {
    "dense": 1.0,
    "float16": 2.0,
    "int8": 3.9,
    "int4": 7.7,
    "int2": 15.0,
    "qsgd": 7.8,
    "terngrad": 19.7,
    "sign": 30.0,
    "prune_10": 13.0,
    "topk_10": 14.0,
    "topk_1": 76.0,
    "topk_01": 156.0,
    "randomk_1": 99.0,
    "dgc_01": 82.0,
    "powersgd_4": 25.0,
}


def row(method: str, feedback: str, accuracy: list[float], diverged: int = 0) -> dict[str, Any]:
    seeds = len(accuracy)
    return {
        "method": method,
        "family": "dense" if method == "dense" else "sparsify" if "_" in method else "quantise",
        "feedback": feedback,
        "accuracy": accuracy,
        "loss": [0.1] * seeds,
        "wire_bytes": [round(1e9 / FACTORS[method])] * seeds,
        "compression_factor": [FACTORS[method]] * seeds,
        "last_step_factor": [FACTORS[method] * 1.5] * seeds,
        "step_seconds": [0.02] * seeds,
        "residual_norm": [None] * seeds,
        "diverged": diverged,
    }


def runs(root: Path) -> Path:
    table = [row("dense", "none", [0.87, 0.88, 0.89]), row("dgc_01", "momentum_correction", [0.86, 0.885, 0.89])]
    for place, method in enumerate(list(FACTORS)[1:]):
        if method != "dgc_01":
            table.append(row(method, "none", [0.80 - 0.01 * place, 0.81, 0.82]))
            table.append(
                row(method, "error_feedback", [] if method == "qsgd" else [0.87, 0.88, 0.88], method == "qsgd")
            )
    return write_result(root, "accuracy_vs_bytes", SETTINGS, FIGURE, table)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(accuracy_vs_bytes.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert any("PowerSGD" in text for text in texts)
    assert any("88.0\u00a0%" in text for text in texts)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_methods_are_joined_with_and_without_feedback(tmp_path: Path, language: str, layout: Any) -> None:
    path = runs(tmp_path) / "accuracy_vs_bytes" / "result.json"
    data = json.loads(path.read_text())
    data["figure"]["feedback"] = [
        {"method": method, "feedback": kind, "momentum": momentum, "rate": 0.3, "factor": 9.0, "accuracy": [0.8, 0.7]}
        for momentum in (0.0, 0.9)
        for method, kind in (("dense", "none"), ("sign", "none"), ("sign", "error_feedback"))
    ]
    data["settings"]["compared_rates"] = [0.1, 0.3]
    path.write_text(json.dumps(data))
    figure, _ = content(accuracy_vs_bytes.PAIR, tmp_path, language)
    texts = drawn_texts(figure, language, layout)
    assert sum(text.endswith("75.0\u00a0%") and text != "75.0\u00a0%" for text in texts) == 2  # dense, by momentum
    assert load(language)("accuracy_vs_bytes.figure.without") in texts
    assert "0.1" in str(figure.caption[-1])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    figure, table = content(accuracy_vs_bytes.PAIR, runs(tmp_path), language)
    rows = {(found[1].value, found[2].value): found for found in table.rows}
    assert len(rows) == 28
    assert rows["dense", "none"][8].value == "base"
    assert rows["dgc_01", "momentum_correction"][7].value == pytest.approx(-0.005 / 3)
    assert rows["dgc_01", "momentum_correction"][8].value == "within"
    assert rows["sign", "none"][8].value == "short"
    assert rows["qsgd", "error_feedback"][6].value is None
    assert rows["int4", "none"][4].value == pytest.approx(7.7)
    assert any("123.0×" in str(part) and "82.0×" in str(part) for part in figure.caption)


@pytest.mark.parametrize(
    ("other", "said"), [(0.80, "wins back accuracy"), (0.50, "harms others, by up to −30.0"), (None, "")]
)
def test_the_sentence_under_the_figure_follows_the_value(other: float | None, said: str) -> None:
    rows = [
        {"method": "topk_1", "momentum": 0.9, "feedback": feedback, "accuracy": [value]}
        for feedback, value in (("none", 0.7), ("error_feedback", 0.78))
    ]
    if other is None:
        rows[1]["accuracy"] = [0.6]
    else:
        rows += [
            {"method": "qsgd", "momentum": 0.0, "feedback": feedback, "accuracy": [value]}
            for feedback, value in (("none", 0.8), ("error_feedback", other))
        ]
    shown = joined.shows(rows, accuracy_vs_bytes.METHODS, load("en"))
    assert (said in shown) if said else shown == ""
