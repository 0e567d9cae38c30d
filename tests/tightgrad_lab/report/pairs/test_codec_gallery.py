"""Say what the result says."""

from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import codec_gallery

SETTINGS = {"steps": 30, "batch_size": 8, "repeats": 5, "draws": 16, "threads": 1}
SHARES = [0.0, 0.05, 0.9, 0.05, 0.0]


def row(codec: str, error: float, averaged: float | None, *, unbiased: bool) -> dict[str, Any]:
    return {
        "codec": codec,
        "id": codec,
        "nbytes": 1000,
        "compression_factor": 4.0,
        "relative_error": error,
        "cosine": 0.99 if error else None,
        "unbiased": unbiased,
        "averaged_error": averaged,
        "encode_bytes_per_second": None if averaged is None else 2e9,
        "decode_bytes_per_second": None if averaged is None else 4e9,
    }


def runs(root: Path) -> Path:
    families = [
        {
            "family": family,
            "method": "TopK(0.01)",
            "nbytes": 1000,
            "compression_factor": 130.3,
            "relative_error": 0.92,
            "strip": [0.5, 0.0, -1.0],
            "after": SHARES,
            "residual": SHARES,
            "num_values": 7,
        }
        for family in codec_gallery.FAMILIES
    ]
    figure = {
        "layer": "encoder.layers.2.linear1.weight",
        "shape": [1024, 256],
        "num_parameters": 3_307_008,
        "loss": 2.7,
        "reach": 4.0,
        "before": SHARES,
        "strip": [0.6, 0.1, -1.2],
        "families": families,
    }
    table = [
        row("copy", 0.0, 0.0, unbiased=True),
        row("IntBlock(4)", 0.1, 0.1, unbiased=False),
        row("TernGrad(2048)", 1.4, 0.36, unbiased=True),
        row("PowerSGD(4)", 0.5, None, unbiased=False),
    ]
    return write_result(root, "codec_gallery", SETTINGS, figure, table)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(codec_gallery.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert sum("0.92" in text for text in texts) == len(codec_gallery.FAMILIES)
    assert "1024 × 256" in figure.alt
    assert any(text.startswith("3 ") or " 3 " in text for text in texts)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    _, table = content(codec_gallery.PAIR, runs(tmp_path), language)
    found = {row[0].value: row for row in table.rows}
    assert [found[name][6].value for name in ("copy", "IntBlock(4)", "TernGrad(2048)")] == ["none", "false", "true"]
    assert found["IntBlock(4)"][8].value == 2e9
    assert found["IntBlock(4)"][8].text == "2.00\u00a0GB/s"
    assert found["PowerSGD(4)"][8].value is None
