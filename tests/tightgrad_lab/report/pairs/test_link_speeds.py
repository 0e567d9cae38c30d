"""Say what the result says."""

from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.experiments.link_speeds import table
from tightgrad_lab.report.pairs import link_speeds

SPEEDS = ((1e7, True), (1e8, True), (1e9, True), (2.4e10, False))
SECONDS = {
    "no communication": (0.5, 0.5, 0.5, 0.5),
    "dense": (23.0, 2.8, 0.75, 0.52),
    "cast bfloat16": (11.9, 1.7, 0.68, 0.60),
    "8-bit blocks": (6.4, 1.2, 0.66, 0.62),
    "4-bit blocks": (3.5, 0.9, 0.65, 0.63),
    "sign": (1.3, 0.7, 0.66, 0.64),
    "powersgd rank 4": (0.98, 0.62, 0.58, 0.57),
    "topk 1 %": (0.71, 0.61, 0.60, 0.60),
    "topk 0.1 %": (0.56, 0.55, 0.55, 0.55),
}
SETTINGS = {"steps": 5, "seconds": 10.0}


def points(ranks: int) -> list[dict[str, Any]]:
    return [
        {
            "plan": plan,
            "ranks": ranks,
            "is_limited": is_limited,
            "bits_per_second": speed,
            "step_seconds": each * (1 + 0.4 * (ranks - 2)),
            "ratio_to_no_communication": each / 0.5,
            "wire_bytes": 29_000_000,
            "interface_payload_bytes": 29_100_000,
            "steps": 5,
        }
        for plan, seconds in SECONDS.items()
        for (speed, is_limited), each in zip(SPEEDS, seconds, strict=True)
    ]


def runs(root: Path) -> Path:
    found = points(2) + points(4)
    figure = {"points": found, "num_parameters": 7_319_808, "work": {"batch_size": 16}}
    return write_result(root, "link_speeds", SETTINGS, figure, table(found))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(link_speeds.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert sum("PowerSGD" in text for text in texts) == 2, "a label in each panel"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    figure, shown = content(link_speeds.PAIR, runs(tmp_path), language)
    rows = {(row[0].value, row[1].value): row for row in shown.rows}
    assert len(rows) == 8
    assert rows[2, 1e7][2].value == "topk 0.1 %"
    assert rows[2, 1e7][3].value == pytest.approx(23.0 / 0.56)
    assert rows[2, 1e7][4].text != rows[2, 2.4e10][4].text, "where dense is as fast, nothing pays"
    assert any("41.1" in str(part) for part in figure.caption)


def test_a_method_pays_from_five_per_cent_on() -> None:
    found = {row["bits_per_second"]: row for row in table(points(2))}
    assert found[1e9]["pays"]
    assert not found[2.4e10]["pays"]
    assert found[2.4e10]["gain"] < 1.0


@pytest.mark.parametrize(
    ("dense", "said"),
    [
        ((23.0, 2.8, 0.75, 0.52), "The slower the link, the more time"),
        ((0.75, 2.8, 23.0, 23.0), "does not always mean"),
        ((0.5, 0.5, 0.5, 0.5), "saves no time on any of the 8 links"),
    ],
)
def test_the_sentence_turns_with_the_values(
    dense: tuple[float, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECONDS, "dense", dense)
    figure, _ = content(link_speeds.PAIR, runs(tmp_path), "en")
    assert said in figure.shows
