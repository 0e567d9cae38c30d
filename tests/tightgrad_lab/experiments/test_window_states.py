"""Every loop meets the same windows, right ones are found right, and the states are those of the windows."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.row_types import wrong
from tightgrad_lab.experiments.window_states import experiment
from tightgrad_lab.experiments.window_states.loops import CONTESTANTS, Contestant, Job, by_hand, measure
from tightgrad_lab.experiments.window_states.machine import KINDS, LAST, STAGES, path_of
from tightgrad_lab.experiments.window_states.ranks import cell_of
from tightgrad_lab.experiments.window_states.ranks import measure as measure_ranks
from tightgrad_lab.experiments.window_states.windows import (
    MICRO_BATCHES,
    PARTIAL,
    SCENARIOS,
    batches_of,
    cells_of,
    compared,
    exact_gradient,
    judged,
    together,
)
from tightgrad_lab.schema.accumulation import WindowStatesFigure, WindowStatesRow
from tightgrad_lab.training.ranks import run_ranks

SETTINGS = experiment.Settings(4, 4, 32, 1, seeds=1, frameworks={"loop": "2", "tightgrad": "1"})
FRAMEWORKS = ("accelerate", "trainer", "trainer_items", "lightning", "optax", "keras")


def outcomes(name: str) -> dict[str, str]:
    return {cell: found["outcome"] for cell, found in cells_of(CONTESTANTS[name].loop, 2).items()}


def test_the_pipeline_is_right_everywhere() -> None:
    assert outcomes("tightgrad") == dict.fromkeys(experiment.CELLS, "right")


def test_loops_by_hand() -> None:
    """Dividing by K is right on equal windows only; counting first is right on all."""
    assert outcomes("weighted") == dict.fromkeys(experiment.CELLS, "right")
    assert outcomes("loop") == {
        "equal": "right",
        "ragged": "wrong",
        "partial": "no_step",
        "next": "wrong",
        "empty": "wrong",
    }
    empty = cells_of(by_hand, 2)["empty"]
    assert empty["gain"] == pytest.approx([(MICRO_BATCHES - 1) / MICRO_BATCHES] * 2)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_every_framework_is_right_on_equal_windows(name: str) -> None:
    """Or it was restated wrongly; what it does on others is for the table to say."""
    if CONTESTANTS[name].version is None:
        pytest.skip(f"{CONTESTANTS[name].framework} is not installed")
    found = measure(Job(name, 1))
    assert list(found) == list(dict.fromkeys([*SCENARIOS, "next"]))
    assert found["equal"]["outcome"] == "right", found["equal"]
    assert not any(cell["outcome"].startswith("fails") for cell in found.values()), found


def test_a_loop_that_raises_fails_where_it_does() -> None:
    def ragged_raises(batches: Any, epochs: int) -> Any:
        if int((batches[1][1] >= 0).sum()) == 2:
            raise KeyError("tokens")
        return by_hand(batches, epochs)

    found = cells_of(ragged_raises, 1)
    assert found["ragged"]["outcome"] == "fails: KeyError"
    assert found["equal"]["outcome"] == "right"


def test_how_a_gradient_is_off() -> None:
    want = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert compared(want / 2, want)["gain"] == pytest.approx(0.5)
    assert compared(want / 2, want)["outcome"] == "wrong"
    turned = compared(torch.tensor([4.0, -3.0]), want)
    assert turned["gain"] == pytest.approx(1.0)
    assert turned["cosine"] == pytest.approx(0.0)
    assert compared(want.float(), want)["outcome"] == "right"
    assert compared(torch.tensor([float("nan"), 1.0]), want)["outcome"] == "not_finite"
    cells = [compared(want.float(), want), compared(None, want)]
    assert together(cells)["outcome"] == "no_step"
    assert together(cells)["gain"] == [1.0, 0.0]


def test_the_step_of_a_partial_window_is_told_from_the_next() -> None:
    batches = batches_of("partial", 0)
    full, last = exact_gradient(batches[:MICRO_BATCHES]), exact_gradient(batches[MICRO_BATCHES:])
    end = MICRO_BATCHES + PARTIAL
    flushed = judged("partial", [(MICRO_BATCHES, full), (end, last), (end + MICRO_BATCHES, full)], [batches])
    assert {name: cell["outcome"] for name, cell in flushed.items()} == {"partial": "right", "next": "right"}
    carried = judged("partial", [(MICRO_BATCHES, full), (end + 1, last)], [batches])
    assert {name: cell["outcome"] for name, cell in carried.items()} == {"partial": "no_step", "next": "wrong"}


def test_states_of_a_window() -> None:
    assert path_of(2, [["micro_batch"] * 2], skipped=True) == [
        *("fetch", "fetch", "count", "micro_batch", "micro_batch", "vote", "guard", "skip"),
    ]
    assert path_of(1, [["out_of_memory"], ["micro_batch"] * 2], skipped=False) == [
        *("fetch", "count", "out_of_memory", "vote", "cut", "micro_batch", "micro_batch", "vote", "guard"),
        *("reduce", "clip", "step"),
    ]


def check_machine(figure: dict[str, Any]) -> None:
    """What goes into a state comes out of it; errors are those of rounding."""
    visits = {state["state"]: state["visits"] for state in figure["states"]}
    k, windows, ranks = SETTINGS.micro_batches, len(KINDS), SETTINGS.ranks
    assert visits["fetch"] == ranks * k * (windows - 1) + sum(LAST)
    assert visits["count"] == visits["guard"] == ranks * windows
    assert visits["out_of_memory"] == 1
    assert visits["cut"] == visits["skip"] == ranks
    assert visits["vote"] == ranks * (windows + 1)
    assert visits["reduce"] == visits["clip"] == visits["step"] == ranks * (windows - 1)
    into, out = Counter(), Counter()
    for edge in figure["transitions"]:
        into[edge["to"]] += edge["count"]
        out[edge["from"]] += edge["count"]
    for state, count in visits.items():
        assert into[state] == count - (ranks if state == "fetch" else 0), state
        assert out[state] == count - (ranks if state == "step" else 0), state
    assert all(state["seconds"] > 0 for state in figure["states"] if state["state"] in (*STAGES, "micro_batch"))
    assert [window["retries"] for window in figure["windows"]] == [0, 1, 0, 0]
    assert [window["skipped"] for window in figure["windows"]] == [False, False, True, False]
    assert figure["windows"][-1]["micro_batches"] == list(LAST)
    assert all((window["relative_error"] is None) == window["skipped"] for window in figure["windows"])
    assert all((window["relative_error"] or 0.0) < 1e-6 for window in figure["windows"])


def test_on_ranks() -> None:
    found: dict[str, Any] = {}
    run_ranks(SETTINGS.ranks, measure_ranks, (SETTINGS,), lambda message: found.update([message]))
    check_machine(found["machine"])
    ours, loop = found["cells"]["tightgrad"], found["cells"]["loop"]
    assert {cell["outcome"] for cell in ours.values()} == {"right"}
    assert loop["equal"]["outcome"] == "right"
    assert loop["ragged"]["outcome"] == "wrong"


@pytest.mark.slow
def test_the_whole_experiment() -> None:
    told: list[float] = []
    settings = replace(SETTINGS, hang_seconds=6.0, collective_seconds=2.0)
    found = experiment.EXPERIMENT.run(settings, lambda share, text: told.append(share))
    assert wrong(found.figure, WindowStatesFigure, "figure") == []
    assert [at for row in found.table for at in wrong(row, WindowStatesRow, "row")] == []
    rows = {row["loop"]: row for row in found.table}
    assert list(rows) == [
        *("loop", "loop_ranks", "weighted", "accelerate", "trainer", "trainer_items", "lightning", "optax", "keras"),
        *("tightgrad", "tightgrad_ranks"),
    ]
    ours = rows["tightgrad_ranks"]
    assert ours["out_of_memory"]["outcome"] == "right"
    assert ours["out_of_memory"]["retries"] == 1
    assert rows["loop_ranks"]["out_of_memory"]["outcome"] == "fails"
    assert "OutOfMemoryError" in rows["loop_ranks"]["out_of_memory"]["by_rank"]
    assert rows["tightgrad"]["out_of_memory"] is None
    assert set(found.figure["tokens"]) == set(SCENARIOS)
    assert told == sorted(told)


def test_what_ranks_say_becomes_a_cell() -> None:
    said = [json.dumps({"outcome": "right", "relative_error": error, "retries": 1}) for error in (1e-8, 2e-8)]
    assert cell_of(said) == {
        "outcome": "right",
        "by_rank": ["right", "right"],
        "relative_error": 2e-8,
        "retries": 1,
    }
    assert cell_of([said[0], "hangs"])["outcome"] == "fails"
    assert cell_of(["hangs", "OutOfMemoryError"])["by_rank"] == ["hangs", "OutOfMemoryError"]


def test_what_is_missing_is_taken_from_the_published_result() -> None:
    for name in ("optax", "keras"):
        found = experiment.published_row(name, CONTESTANTS[name])
        assert found["framework"] == CONTESTANTS[name].framework
        assert found["version"]
        assert found["measured"]
        assert found["equal"]["outcome"] == "right"


def test_what_is_not_published_either_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = Contestant("Nobody", "nothing()", by_hand, ("no-such-distribution",))
    assert missing.version is None
    monkeypatch.setattr(experiment, "PUBLISHED", tmp_path / "window_states.json")
    row = experiment.published_row("nobody", missing)
    assert row["version"] is None
    assert all(row[cell] is None for cell in experiment.CELLS)


def test_published_result_is_whole() -> None:
    published = json.loads(experiment.PUBLISHED.read_text(encoding="utf-8"))
    assert [row["loop"] for row in published["table"] if row["version"] is None] == []
    ours = [row for row in published["table"] if row["framework"] == "TightGrad"]
    assert len(ours) == 2
    assert all(row[cell]["outcome"] == "right" for row in ours for cell in experiment.CELLS)
    assert all(row["equal"]["outcome"] == "right" for row in published["table"])
    assert all(row["measured"] is None for row in published["table"])
