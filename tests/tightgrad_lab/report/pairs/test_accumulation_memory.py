"""Say what the result says."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import accumulation_memory

SETTINGS = {"effective_batch": 32, "compared": 4, "seeds": 3, "rounds": 7, "ranks": 2}
MIB = 2**20


def point(size: int, mebibytes: float, seconds: float) -> dict[str, Any]:
    return {
        "micro_batch": size,
        "peak_memory_bytes": [mebibytes * MIB] * 3,
        "step_seconds": seconds,
        "step_seconds_quartiles": [seconds * 0.9, seconds * 1.2],
    }


def row(wrapper: str, ranks: int, mebibytes: float, sent: int, seconds: float) -> dict[str, Any]:
    own = {"wrapper": wrapper, "ranks": ranks, "wire_bytes": sent, "micro_batches": 8 // ranks}
    return {**point(4, mebibytes, seconds), **own, "weights_difference": 3e-5}


def runs(root: Path, every: float = 9.0) -> Path:
    points = [point(32, 48.0, 0.1), point(1, 8.0, 0.13), point(4, 12.0, 0.09)]
    figure = {"points": points, "fixed_bytes": 7 * MIB, "num_parameters": 470_528}
    table = [
        row("single", 1, 12.0, 0, 0.09),
        row("ddp", 2, 14.0, 2 * MIB, 0.06),
        row("fsdp2 last", 2, 10.0, 8 * MIB, 0.08),
        row("fsdp2 every", 2, every, 16 * MIB, 0.12),
    ]
    return write_result(root, "accumulation_memory", SETTINGS, figure, table)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(accumulation_memory.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert {"1", "4", "32"} <= set(texts)
    assert "6.00×" in figure.caption[1]  # 48 MiB over 8 MiB
    assert "1.30×" in figure.caption[1]
    assert "470,528" in figure.caption[0]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    _, table = content(accumulation_memory.PAIR, runs(tmp_path), language)
    found = {row[0].value: row for row in table.rows}
    assert list(found) == list(accumulation_memory.WRAPPERS)
    assert [row[2].value for row in found.values()] == [8, 4, 4, 4]
    assert found["fsdp2 every"][3].value == 9.0 * MIB
    assert found["fsdp2 every"][4].text == "16.0\u00a0MiB"
    assert found["ddp"][5].value == 0.06
    assert all(text in table.caption[1] for text in ("0.90×", "2.00×", "1.50×"))


def test_the_verdict_follows_the_data(tmp_path: Path) -> None:
    _, table = content(accumulation_memory.PAIR, runs(tmp_path, every=11.0), "en")
    assert "1.10× the memory" in table.caption[1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_sentence_turns_with_the_values(tmp_path: Path, language: str) -> None:
    first, _ = content(accumulation_memory.PAIR, runs(tmp_path), language)
    assert "16.7\u00a0%" in first.shows
    path = tmp_path / "accumulation_memory" / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    for one in result["figure"]["points"]:
        one |= {"micro_batch": 33 - one["micro_batch"]}
    path.write_text(json.dumps(result), encoding="utf-8")
    second, _ = content(accumulation_memory.PAIR, tmp_path, language)
    assert "600.0\u00a0%" in second.shows
