"""Say what the result says."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import loss_spikes
from tightgrad_lab.report.texts import load

SETTINGS = {
    "seeds": 3,
    "outliers": 2,
    "steps": 60,
    "batch_size": 8,
    "width": 64,
    "layers": 2,
    "learning_rate": 0.003,
}
SPIKES = {"none": 5, "global_norm": 1, "agc": 9, "autoclip": 5, "zclip": 1, "adagc": 1, "clean": 0}


def runs(root: Path) -> Path:
    table = [
        {
            "method": method,
            "settings": None if method in ("none", "clean") else f"Method({method})",
            "runs": [
                {
                    "spikes": spikes,
                    "highest": 0.5,
                    "lost": 1.0,
                    "final_loss": None if method == "autoclip" else 2.5 - 0.01 * seed + 0.1 * (method == "agc"),
                    "clip_rate": 0.1,
                    "usual_norm": 0.5,
                    "outlier_norm": None if method == "clean" else 6.0,
                }
                for seed in range(3)
            ],
        }
        for method, spikes in SPIKES.items()
    ]
    losses = [5.0 - 0.04 * step for step in range(60)]
    curves = [
        {
            "method": method,
            "seed": seed,
            "losses": losses if method == "clean" else [*losses[:30], None, 4.5, *losses[32:]],
            "norms": [0.5] * 30 + [6.0] + [0.5] * 29,
            "outliers": [] if method == "clean" else [30],
        }
        for method in SPIKES
        for seed in range(3)
    ]
    figure = {
        "held_out": 0.1,
        "burst": 3,
        "before": 10,
        "after": 20,
        "spike_nats": 0.2,
        "betas": [0.9, 0.95],
        "curves": curves,
    }
    return write_result(root, "loss_spikes", SETTINGS, figure, table)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(loss_spikes.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert sum("5.0" in text for text in texts) == 2
    assert sum("9.0" in text for text in texts) == 1
    assert any(load(language)("loss_spikes.figure.norms") in text for text in texts)


def test_a_result_without_norms_is_drawn_too(tmp_path: Path) -> None:
    path = runs(tmp_path) / "loss_spikes" / "result.json"
    data = json.loads(path.read_text())
    for curve in data["figure"]["curves"]:
        del curve["norms"]
    path.write_text(json.dumps(data))
    assert drawn_texts(content(loss_spikes.PAIR, tmp_path, "en")[0], "en", LAYOUTS[0])


def test_what_is_better_is_said_and_what_is_worse(tmp_path: Path) -> None:
    said = [str(text) for text in content(loss_spikes.PAIR, runs(tmp_path), "en")[0].caption]
    assert "global norm, ZClip, AdaGC; more: AGC." in said[-2]
    assert said[-1].endswith("over seeds: none; higher: AGC.")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    _, table = content(loss_spikes.PAIR, runs(tmp_path), language)
    found = {row[0].value: row for row in table.rows}
    assert list(found) == list(loss_spikes.METHODS)
    assert found["none"][6].value is None
    assert found["zclip"][6].value == pytest.approx(0.1)
    assert found["none"][5].value == pytest.approx(2.49)
    assert found["autoclip"][5].value is None
    assert found["clean"][7].value is None


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_sentence_turns_with_the_values(tmp_path: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = content(loss_spikes.PAIR, runs(tmp_path / "first"), language)
    fewer = {"en": "{} of the 5 methods leave fewer", "zh": "比不裁剪时少的有 {} 种"}[language]
    assert fewer.format(3) in first.shows
    assert "12.0" in first.shows
    for method in SPIKES.keys() - {"none", "clean"}:
        monkeypatch.setitem(SPIKES, method, 7)
    second, _ = content(loss_spikes.PAIR, runs(tmp_path / "second"), language)
    assert fewer.format(0) in second.shows
