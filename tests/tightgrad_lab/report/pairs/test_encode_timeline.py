"""Say what the result says."""

from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import encode_timeline

SETTINGS = {"steps": 6, "seconds": 8.0, "ranks": 2}
MIB = 2**20


def lane(plan: str, seconds: dict[str, float], sent: float, payload: int | None) -> dict[str, Any]:
    return {
        "plan": plan,
        "method": "Method(4)",
        "seconds": seconds,
        "wire_bytes": sent,
        "payload_bytes": payload,
        "gradient_bytes": 12 * MIB,
    }


def cell(value: str, how: str = "run", source: str = "") -> dict[str, str]:
    return {"value": value, "how": how, "source": source}


def runs(root: Path, dense_seconds: float = 0.1) -> Path:
    times = {"encode": 0.02, "collective": 0.01, "decode": 0.03}
    lanes = [
        lane("dense", {"collective": dense_seconds}, 12 * MIB, None),
        lane("cast", times, 6 * MIB, 6 * MIB),
        lane("quantise", times, 2 * MIB, 2 * MIB),
        lane("sparsify", times, 1000, 990),
        lane("low_rank", times, 3 * MIB, None),
    ]
    row = {"framework": "PyTorch", "method": "powerSGD_hook"} | {
        name: cell("hangs") for name in encode_timeline.COLUMNS
    }
    row["ddp"], row["fsdp2"] = cell("yes", "quoted", "https://example.org/a?b=1&c=2"), cell("TypeError")
    return write_result(root, "encode_timeline", SETTINGS, {"ranks": 2, "lanes": lanes}, [row])


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(encode_timeline.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert texts.count("20.0\u00a0ms") == 4
    assert "990\u00a0B" in texts
    assert texts.count("3.00\u00a0MiB") == 2  # PowerSGD has no payload of its own: what it sent


@pytest.mark.parametrize("language", ["en", "zh"])
def test_cells_say_how_they_are_known(tmp_path: Path, language: str) -> None:
    _, table = content(encode_timeline.PAIR, runs(tmp_path), language)
    (found,) = table.rows
    assert found[2].value == "yes (quoted: https://example.org/a?b=1&c=2)"
    assert '<a href="https://example.org/a?b=1&amp;c=2">' in str(found[2].text)
    assert "<code>TypeError</code>" in str(found[3].text)
    assert found[6].value == "hangs (run)"


def test_what_is_fastest_is_named(tmp_path: Path) -> None:
    assert "half precision, 60.0" in str(content(encode_timeline.PAIR, runs(tmp_path / "a"), "en")[0].caption)
    assert "nothing to save" in str(content(encode_timeline.PAIR, runs(tmp_path / "b", 0.005), "en")[0].caption)
