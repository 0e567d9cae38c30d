"""Say what the result says."""

from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import clip_stages
from tightgrad_lab.report.texts import load

SETTINGS = {"warm_up": 2, "steps": 7, "micro_batches": 2, "batch_size": 4, "trees": 5, "repeats": 7, "threads": 1}
SECONDS = {
    "below": (0.2, 1e-3, 6e-5, 1e-7, 3e-3),
    "multiply": (0.2, 1e-3, 6e-5, 2e-3, 3e-3),
    "fold": (0.2, 1e-3, 6e-5, 1e-7, 3e-3),
    "torch": (0.2, 2e-3, 1e-7, 2e-3, 3e-3),
}
NBYTES = (None, 4_000_000, 4, 8_000_000, 32_000_000)


def framework_row(framework: str, method: str, difference: float | None, measured: str | None) -> dict[str, Any]:
    return {
        "framework": framework,
        "version": "1.0",
        "operation": f"{framework}.{method}",
        "method": method,
        "counterpart": "tg.clip_grad_norm_",
        "largest_relative_difference": difference,
        "tightgrad_error": 1e-7,
        "framework_error": 2.5e-7,
        "smallest_scale": 1e-14,
        "largest_scale": 1e14,
        "tightgrad_smallest_scale": 1e-22 if method == "value" else 1e-30,
        "tightgrad_largest_scale": 1e30,
        "bfloat16_error": None,
        "tightgrad_bfloat16_error": 0.0,
        "seconds": 2e-4,
        "tightgrad_seconds": 1e-4,
        "cannot": "be right",
        "measured": measured,
    }


def runs(root: Path) -> Path:
    lanes = [
        {
            "lane": lane,
            "seconds": dict(zip(clip_stages.STAGES, seconds, strict=True)),
            "memory_bytes": dict(zip(clip_stages.STAGES, NBYTES, strict=True)),
            "num_parameters": 1_000_000,
            "grad_norm": 2.0,
            "clip_coef": 0.5,
        }
        for lane, seconds in SECONDS.items()
    ]
    table = [
        framework_row("PyTorch", "value", 0.0, None),
        framework_row("PyTorch", "norm", 1.2e-5, None),
        framework_row("TensorFlow", "global_norm", 3.0e-7, "2026-11-25T00:00:00+00:00"),
        framework_row("JAX/optax", "agc", None, None),
    ]
    return write_result(root, "clip_stages", SETTINGS, {"stages": list(clip_stages.STAGES), "lanes": lanes}, table)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(clip_stages.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    flow = ("200\u00a0ms", "1.00\u00a0ms", "60.0\u00a0µs", "2.00\u00a0ms", "3.00\u00a0ms")  # where the bound is reached
    assert [texts.count(time) for time in flow] == [1] * 5
    totals = [text for text in texts if text.endswith("ms") and text not in flow]
    assert totals == ["1.06\u00a0ms", "3.06\u00a0ms", "1.06\u00a0ms", "4.00\u00a0ms"]
    assert load(language)("clip_stages.figure.no") in texts


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    figure, table = content(clip_stages.PAIR, runs(tmp_path), language)
    assert [row[3].value for row in table.rows] == [0.0, 1.2e-5, 3.0e-7, None]
    assert [row[3].text for row in table.rows][:3] == ["0", "1.2e−5", "3.0e−7"]
    assert table.rows[0][8].text == "1e−14 … 1e14"
    assert table.rows[0][9].text == "0.50×"
    agreement, notes = str(table.caption[1]), " ".join(map(str, table.notes))
    assert "TensorFlow 3.0e−7" in agreement
    assert "1e−22 … 1e30" in notes
    assert "2026-11-25" in notes
    folded = (1e-3 + 6e-5 + 3e-3) / (1e-3 + 6e-5 + 2e-3 + 3e-3)
    assert f"{folded:.2f}×" in str(figure.caption[1])
