"""Say what the result says."""

import re
from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.measured.results import read_result
from tightgrad_lab.report.pairs import large_batches

SETTINGS = {"epochs": 3, "warmup_epochs": 1, "seeds": 2, "base_batch": 32, "batches": [512]}
ACCURACY = {
    (32, "none"): [0.87, 0.88],
    (512, "none"): [0.80, 0.82],
    (512, "sqrt"): [0.83, 0.85],
    (512, "linear"): [0.70, 0.74],
    (512, "linear_constant"): [0.10, 0.10],
    (512, "linear_gradual"): [0.75, 0.77],
    (512, "lars"): [0.86, 0.87],
    (512, "lamb"): [0.85, 0.86],
}


EQUAL = {
    "batch": 32,
    "micro_batches": 8,
    "rate": 0.01,
    "whole": [2.0, 1.5, 1.0],
    "accumulated": [2.0, 1.5, 1.0],
    "largest_difference": 8.9e-16,
    "largest_difference_float32": 0.0917,
}


def runs(root: Path, rows: dict[Any, list[float]] = ACCURACY) -> Path:
    lost = (512, "linear_constant")
    table = [
        {
            "batch": batch,
            "rule": rule,
            "learning_rate": 0.01,
            "steps": 9,
            "accuracy": values,
            "loss": [None if (batch, rule) == lost else 0.2 + 0.1 * seed for seed in range(len(values))],
            "diverged": 2 if (batch, rule) == lost else 0,
        }
        for (batch, rule), values in rows.items()
    ]
    curves = [
        {
            "batch": batch,
            "rule": rule,
            "seed": seed,
            "losses": [2.0, None, None] if (batch, rule) == lost else [2.0, 0.5 + 0.1 * seed, 0.2],
        }
        for batch, rule in [*rows, (32, "lars"), (32, "lamb")]
        for seed in range(2)
    ]
    figure = {
        "base_batch": 32,
        "train_samples": 6000,
        "test_samples": 1000,
        "warmup_epochs": 1,
        "rates": {"sgd": 0.01, "lars": 3.0, "lamb": 0.01},
        "tuning": [],
        "curves": curves,
        "equal": EQUAL,
    }
    return write_result(root, "large_batches", SETTINGS, figure, table)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(large_batches.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert sum("LAMB" in text for text in texts) == 1
    assert any("512" in text for text in texts)
    assert any("8 × 4" in text for text in texts)
    assert "8.90e−16" in str(figure.caption[1])
    assert "0.0917" in str(figure.caption[1])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    figure, table = content(large_batches.PAIR, runs(tmp_path), language)
    rows = {(row[0].value, row[1].value): row for row in table.rows}
    assert rows.keys() == ACCURACY.keys()
    assert rows[512, "lars"][4].value == pytest.approx(0.865)
    assert rows[512, "lars"][5].value == pytest.approx(-0.01)
    assert rows[32, "none"][6].value == "base"
    assert rows[512, "none"][6].value == "short"
    assert rows[512, "linear_constant"][7].value is None
    assert "86.5\u00a0%" in figure.alt


def test_goyal_is_confirmed_or_not(tmp_path: Path) -> None:
    said = " ".join(content(large_batches.PAIR, runs(tmp_path / "a"), "en")[0].caption)
    assert "; the same order" in said
    assert "gradual warm-up does not reach the small batch" in said
    assert "+4.0\u00a0pp" in said
    worse = ACCURACY | {(512, "linear_gradual"): [0.60, 0.61]}
    assert "not the same order" in str(content(large_batches.PAIR, runs(tmp_path / "b", worse), "en")[0].caption)


def test_a_curve_ends_where_a_seed_ends(tmp_path: Path) -> None:
    result = read_result(runs(tmp_path), "large_batches")
    assert result is not None
    assert large_batches._mean_curve(result, 512, "linear_constant")[0] == [2.0]
    assert large_batches._mean_curve(result, 512, "lars") == ([2.0, 0.55, 0.2], [2.0, 0.5, 0.2], [2.0, 0.6, 0.2])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_sentence_turns_with_the_values(tmp_path: Path, language: str) -> None:
    first, _ = content(large_batches.PAIR, runs(tmp_path / "first"), language)
    turned = ACCURACY | {(512, "linear_constant"): [0.88, 0.89], (512, "lars"): [0.05, 0.06]}
    second, _ = content(large_batches.PAIR, runs(tmp_path / "second", turned), language)
    numbers = [re.findall(r"[\d.]+(?=\u00a0%)", one.shows) for one in (first, second)]
    assert numbers == [["86.5", "10.0", "87.5"], ["88.5", "5.5", "87.5"]]
    behind = [one.shows.split("86.5" if one is first else "5.5\u00a0%")[1][:12] for one in (first, second)]
    assert all("LARS" in name for name in behind)
