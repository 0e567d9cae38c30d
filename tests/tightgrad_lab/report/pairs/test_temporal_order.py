"""Say what the result says."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.measured.results import read_result
from tightgrad_lab.report.pairs import temporal_order

SETTINGS = {
    "lengths": {"rnn": [10, 30], "lstm": [30]},
    "seeds": 3,
    "steps": 1000,
    "max_norm": 1.0,
    "rates": {"rnn": [0.1, 0.01], "lstm": [1.0]},
    "kind_rates": [0.1, 1.0],
    "kind_seeds": 2,
    "kind_steps": 60,
    "batch_size": 32,
    "hidden": 50,
    "check_every": 100,
    "test_sequences": 1000,
    "kind_batch": 16,
}
LEARNED = {
    ("rnn", 10, False, 0.1): 1,
    ("rnn", 10, False, 0.01): 3,
    ("rnn", 10, True, 0.1): 3,
    ("rnn", 30, False, 0.1): 0,
    ("rnn", 30, False, 0.01): 0,
    ("rnn", 30, True, 0.1): 3,
    ("lstm", 30, False, 1.0): 3,
    ("lstm", 30, True, 1.0): 2,
}

CLIFF = {
    "steps": 50,
    "rate": 1.0,
    "max_norm": 0.1,
    "weights": [4.0, 5.0, 6.0],
    "biases": [-3.0, -2.0, -1.0],
    "loss": [[0.4, 0.1, 0.1], [0.3, 0.1, 0.05], [0.2, 0.1, 0.0]],
    "without": {"places": [[5.5, -2.1], [4.5, -2.0], [9.0, 10.0]], "norms": [0.1, 14.0]},
    "with": {"places": [[5.5, -2.1], [5.0, -2.0], [4.8, -2.0]], "norms": [0.1, 14.0]},
}
BACKWARD = [
    {"kind": kind, "gain": gain, "length": length, "norms": [0.1 * gain**i for i in range(length)]}
    for kind, gain in (("rnn", 1.5), ("lstm", 1.0))
    for length in (10, 30)
]


def runs(root: Path) -> Path:
    found = [
        {
            "kind": kind,
            "length": length,
            "seed": seed,
            "clipped": clipped,
            "learning_rate": rate,
            "learned": seed < count,
            "steps": 300 if seed < count else 1000,
            "accuracy": 0.995 if seed < count else 0.3 + 0.1 * seed,
            "diverged": False,
            "largest_norm": 20.0,
            "clip_rate": 0.5,
            "curve": [0.5, 3.0, 0.2] if seed < count else [0.5, 20.0, None],
        }
        for (kind, length, clipped, rate), count in LEARNED.items()
        for seed in range(3)
    ]
    table = [
        {
            "kind": kind,
            "largest_norm": 24.3,
            "largest_norm_with": 12.0,
            "runs": 4,
            "diverged": 2,
            "diverged_with": 0,
            "clip_rate": 0.25,
            "best_rate": None if kind == "cnn" else 0.1,
            "best_loss": None if kind == "cnn" else [2.0, 2.2],
            "best_with_rate": 1.0,
            "best_with_loss": [1.5, 1.7],
        }
        for kind in ("rnn", "lstm", "transformer", "cnn")
    ]
    figure = {"runs": found, "cliff": CLIFF, "backward": BACKWARD}
    return write_result(root, "temporal_order", SETTINGS, figure, table)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(temporal_order.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    if layout is LAYOUTS[0]:  # a phone has the dots alone
        rows = ["1/3", "0/3", "3/3", "3/3", "3/3", "0/3"]  # each rate without clipping and with it, by length
        assert [text for text in texts if "/3" in text] == [*rows, "3/3", "2/3"]
    assert {"10", "30", "0.1", "0.01"} <= set(texts)
    assert any("w = 9.0" in text for text in texts)
    assert {"RNN × 1.5", "LSTM"} <= set(texts)


def test_without_the_computed_panels_an_older_result_still_shows_its_runs(tmp_path: Path) -> None:
    path = runs(tmp_path) / "temporal_order" / "result.json"
    data = json.loads(path.read_text())
    del data["figure"]["cliff"], data["figure"]["backward"]
    path.write_text(json.dumps(data))
    assert "2/3" in drawn_texts(content(temporal_order.PAIR, tmp_path, "en")[0], "en", LAYOUTS[0])


def test_plain_sgd_is_shown_at_its_best_rate(tmp_path: Path) -> None:
    result = read_result(runs(tmp_path), "temporal_order")
    assert result is not None
    assert {run["learning_rate"] for run in temporal_order._runs(result, "rnn", 10, False)} == {0.01}
    assert temporal_order.shown_length(result, "rnn") == 30
    assert temporal_order.shown_length(result, "lstm") == 30


def test_what_clipping_turned_is_said_and_what_not(tmp_path: Path) -> None:
    same, best, lstm = map(str, content(temporal_order.PAIR, runs(tmp_path), "en")[0].caption[-3:])
    assert same.startswith("RNN, at the learning rate of clipping")
    assert same.endswith(": 30.")
    assert best == "RNN, against plain SGD at every rate that was tried: 30."
    assert lstm.endswith("with it: none.")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    figure, table = content(temporal_order.PAIR, runs(tmp_path), language)
    found = {row[0].value: row for row in table.rows}
    assert (found["rnn"][2].text, found["rnn"][3].text) == ("2/4", "0/4")
    assert found["rnn"][5].value == pytest.approx(2.1)
    assert found["cnn"][5].value is None
    assert found["cnn"][7].value == pytest.approx(1.6)
    assert "30" in figure.alt


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_sentence_turns_with_the_values(tmp_path: Path, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = content(temporal_order.PAIR, runs(tmp_path / "first"), language)
    for without, with_bound in ((CLIFF["with"], CLIFF["without"]),):
        monkeypatch.setitem(CLIFF, "without", without)
        monkeypatch.setitem(CLIFF, "with", with_bound)
    for key in [key for key in LEARNED if key[2]]:
        monkeypatch.setitem(LEARNED, key, 0)
    second, _ = content(temporal_order.PAIR, runs(tmp_path / "second"), language)
    learned = {"en": "{} of 9 with it", "zh": "裁剪时 9 次中学会 {} 次"}[language]
    assert learned.format(8) in first.shows
    assert learned.format(0) in second.shows
    assert first.shows.split("b")[0] != second.shows.split("b")[0]
