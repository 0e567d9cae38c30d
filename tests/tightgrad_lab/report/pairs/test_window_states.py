"""Say what the result says."""

from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import window_states

SETTINGS = {"micro_batches": 4, "batch_size": 4, "seeds": 3, "hang_seconds": 12.0, "collective_seconds": 4.0}
VISITS = {name: 10 + place for place, name in enumerate([*window_states.STATES, "out_of_memory"])}
TIMED = ("micro_batch", "guard", "reduce", "clip")


def cell(outcome: str, gain: float | None = None, error: float | None = None) -> dict[str, Any]:
    return {"outcome": outcome, "gain": [gain] * 3, "relative_error": [error, error, None], "cosine": [None] * 3}


def row(framework: str, version: str | None, cells: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "loop": framework.lower(),
        "framework": framework,
        "version": version,
        "method": f"{framework}()",
        "ranks": 1,
        **dict.fromkeys(window_states.CELLS),
        **cells,
        "out_of_memory": None,
        "measured": None,
    } | more


RIGHT = cell("right", 1.0, 1e-8)
ROWS = [
    row(
        "PyTorch",
        "2.13.0",
        {
            "equal": RIGHT,
            "ragged": cell("wrong", 1.25, 0.6),
            "partial": cell("no_step", 0.0, 1.0),
            "next": cell("wrong", 1.75, 0.8),
            "empty": cell("not_finite"),
        },
        out_of_memory={"outcome": "fails", "by_rank": ["hangs", "OutOfMemoryError"], "relative_error": None},
    ),
    row(
        "Keras",
        "3.15.1/2.21.0",
        dict.fromkeys(window_states.CELLS, cell("wrong", 0.75, 0.25)),
        measured="2026-11-27T00:00:00",
    ),
    row("Lightning", None, {}),
    row("Accelerate", "1.15.0", dict.fromkeys(window_states.CELLS, RIGHT) | {"next": cell("fails: KeyError")}),
    row(
        "TightGrad",
        "0.1.0",
        dict.fromkeys(window_states.CELLS, RIGHT),
        ranks=2,
        out_of_memory={"outcome": "right", "by_rank": ["right", "right"], "relative_error": 1e-8, "retries": 1},
    ),
]


def window(kind: str, error: float | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "micro_batches": [4, 3],
        "backwards": [8, 6],
        "weight": 1234.0,
        "retries": 0,
        "skipped": error is None,
        "wire_bytes": 2**20,
        "relative_error": error,
    }


def runs(root: Path) -> Path:
    figure = {
        "micro_batches": 4,
        "ranks": 2,
        "parameters": 50_000,
        "states": [
            {"state": name, "visits": visits, "seconds": 2e-3 if name in TIMED else None}
            for name, visits in VISITS.items()
        ],
        "transitions": [
            {"from": "fetch", "to": "fetch", "count": 99},
            {"from": "micro_batch", "to": "vote", "count": 30},
            {"from": "out_of_memory", "to": "vote", "count": 3},
        ],
        "windows": [window("full", 1.5e-7), window("out_of_memory", 2e-7), window("nonfinite", None)],
        "tokens": {"equal": [[16] * 4], "ragged": [[16, 2, 16, 1]], "empty": [[16, 0, 16, 16]], "partial": [[16] * 7]},
        "memory": {"samples": 16, "fits": 10},
    }
    return write_result(root, "window_states", SETTINGS, figure, ROWS)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(window_states.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert "99" in texts
    assert "33" in texts  # both ways into the vote
    for name, visits in VISITS.items():
        assert any(str(visits) in text for text in texts), name
    assert sum("2.00\u00a0ms" in text for text in texts) == len(TIMED)
    assert any("1.00\u00a0MiB" in text for text in texts)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_windows_in_words(tmp_path: Path, language: str) -> None:
    figure, _ = content(window_states.PAIR, runs(tmp_path), language)
    caption = " ".join(map(str, figure.caption))
    for words in ("1.50e−7", "2.00e−7", "4 + 3", "8 + 6", "1,234", "50,000"):
        assert words in caption
    assert "2.00\u00a0ms" in figure.alt


@pytest.mark.parametrize("language", ["en", "zh"])
def test_gains(tmp_path: Path, language: str) -> None:
    _, table = content(window_states.PAIR, runs(tmp_path), language)
    loop, keras, missing, accelerate, ours = ([cell.value for cell in row] for row in table.rows)
    assert loop[3:8] == [1.0, 1.25, 0.0, 1.75, None]
    assert keras[3:8] == [0.75] * 5
    assert missing[3:8] == [None] * 5
    assert accelerate[6] is None
    assert ours[3:8] == [1.0] * 5
    shown = [[str(cell.text) for cell in row] for row in table.rows]
    assert shown[0][3] == "1.000×"
    assert "60.0\u00a0%" in shown[0][4]
    assert shown[0][7] == "NaN"
    assert "<code>KeyError</code>" in shown[3][6]
    assert loop[8] == "hangs; OutOfMemoryError"
    assert "<code>OutOfMemoryError</code>" in shown[0][8]
    assert "1" in shown[4][8]
    assert loop[9] == 1e-8


def test_what_is_right_and_what_was_not_run_is_said(tmp_path: Path) -> None:
    _, table = content(window_states.PAIR, runs(tmp_path), "en")
    caption, notes = " ".join(map(str, table.caption)), " ".join(map(str, table.notes))
    assert "Correct on every window: TightGrad (TightGrad())." in caption
    assert (
        "Equal 1 of 4; Ragged 2 of 4; Partial 2 of 4; After the partial one 3 of 4; One all padding 2 of 4" in caption
    )
    assert "16, 2, 16, 1" in caption
    assert "3 in the last window" in caption
    assert (
        "Keras is not installed here; its row is that of the published result, measured on 2026-11-27 over 3 draws."
        in notes
    )
    assert "Lightning is not installed here, and no published row is there: not measured." in notes
    assert "Lightning (not installed)" in str(table.rows[2][0].text)


def test_rows_of_the_csv_have_the_errors(tmp_path: Path) -> None:
    _, table = content(window_states.PAIR, runs(tmp_path), "en")
    heading, first, *_ = table.to_csv().splitlines()
    assert "Ragged: largest relative error" in heading
    assert ",0.6," in first
