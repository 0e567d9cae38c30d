"""Say what the result says."""

from pathlib import Path
from typing import Any

import pytest

from support.drawing import LAYOUTS, content, drawn_texts, write_result
from tightgrad_lab.report.pairs import common_failures

SETTINGS = {"steps": 120, "seeds": 2}
PROBLEMS = {
    "over_clipping": "loss",
    "idle_clipping": "loss",
    "exploding_norms": "loss",
    "graph_kept_alive": "growth",
    "out_of_memory": "steps",
    "precision_lost": "loss",
    "stale_warm_start": "loss",
    "rank_drift": "difference",
    "wrong_denominator": "gain",
}


def curve(seed: int, count: int, *, ended: bool = False) -> dict[str, Any]:
    return {
        "steps": list(range(count)),
        "values": [2.3 + seed / 10 - step / 100 for step in range(count)],
        "ended": ended,
    }


def runs(root: Path) -> Path:
    panels = [
        {
            "problem": problem,
            "field": "memory_bytes" if problem == "graph_kept_alive" else "loss",
            "runs": [
                {"before": curve(seed, 20, ended=problem == "out_of_memory"), "after": curve(seed, 30)}
                for seed in (0, 1)
            ],
        }
        for problem in common_failures.COLORS
    ]
    table = [
        {
            "problem": problem,
            "metric": metric,
            "before": [2.0, None] if problem == "exploding_norms" else [2.0, 3.0],
            "after": [0.5, 0.5],
            "named": 2,
            "cured": 1 if problem == "rank_drift" else 2,
            "also_said": ["exploding_norms"] if problem == "idle_clipping" else [],
            "said_after": [],
            "evidence": f"evidence of {problem}",
            "cure": "cure",
            "step": 3,
            "plan_before": {"version": 1, "clip": None, "compress": None},
            "plan_after": None
            if problem == "rank_drift"
            else {"version": 1, "clip": {"id": "global_norm", "max_norm": 1.1, "fold": "auto"}, "compress": None},
        }
        for problem, metric in PROBLEMS.items()
    ]
    return write_result(root, "common_failures", SETTINGS, {"panels": panels}, table)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_drawn(tmp_path: Path, language: str, layout: Any) -> None:
    figure, _ = content(common_failures.PAIR, runs(tmp_path), language)
    texts = drawn_texts(figure, language, layout)
    assert any("0.001" in str(part) for part in figure.caption)
    assert "17" in str(figure.caption[1])
    assert len([text for text in texts if text]) > 10


@pytest.mark.parametrize("language", ["en", "zh"])
def test_numbers(tmp_path: Path, language: str) -> None:
    _, table = content(common_failures.PAIR, runs(tmp_path), language)
    found = {row[0].value: row for row in table.rows}
    assert list(found) == list(PROBLEMS)
    over, drift = found["over_clipping"], found["rank_drift"]
    assert (over[5].value, over[6].value) == (2.5, 0.5)
    assert over[5].sd == pytest.approx(0.7071, abs=1e-4)
    assert "clip: global_norm(max_norm=1.1)" in over[3].text
    assert "evidence of over_clipping" in over[2].text
    assert (drift[7].text, drift[8].text) == ("2 / 2", "1 / 2")
    assert found["exploding_norms"][5].value is None
    assert found["wrong_denominator"][6].text == "0.50×"
    assert len(table.notes) >= 1


def test_memory_is_counted_from_where_the_table_counts() -> None:
    """The table leaves out the first fifth of the steps; the figure must, or the two disagree."""
    curve = {"steps": list(range(10)), "values": [float(2**20 * step**2) for step in range(10)], "ended": False}
    steps, values = common_failures._together([curve], added=True)
    assert steps == list(range(2, 10))
    assert values[0] == (0.0,)
    assert values[-1] == (81.0 - 4.0,)
    steps, values = common_failures._together([curve], added=False)
    assert (steps[0], values[-1]) == (0, (81.0 * 2**20,))
