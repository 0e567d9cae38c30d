"""Ranks that hang or die are told apart, cells keep their source, bytes are those that were counted."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from support.row_types import wrong
from tightgrad_lab.experiments.encode_timeline import peers as peers
from tightgrad_lab.experiments.encode_timeline import table
from tightgrad_lab.experiments.encode_timeline.path import PLANS, Lane, measure
from tightgrad_lab.experiments.encode_timeline.table import COLUMNS, Trial, quoted_rows, run_trials, trials
from tightgrad_lab.experiments.fragile import HANGS, outcomes
from tightgrad_lab.schema.compression import EncodeLane, EncodeTimelineRow
from tightgrad_lab.training.ranks import run_ranks


def _each_in_its_way() -> str:
    if dist.get_rank() == 0:
        time.sleep(600)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("IndexError: of somebody's callback")


def _the_second_time(folder: str) -> str:
    marker = Path(folder) / "tried"
    if not marker.exists():
        marker.touch()
        time.sleep(600)
    return "yes"


@pytest.mark.slow
def test_what_became_of_each_rank() -> None:
    assert outcomes(3, _each_in_its_way, seconds=20.0) == [HANGS, "SIGKILL", "RuntimeError (IndexError)"]


@pytest.mark.slow
def test_a_trial_that_hangs_is_tried_again(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    once.mkdir()
    twice.mkdir()
    todo = {
        "once": Trial(_the_second_time, (str(once),), ranks=1),
        "twice": Trial(_the_second_time, (str(twice),), ranks=1, attempts=2),
    }
    assert run_trials(todo, 15.0, lambda share, text: None) == {"once": HANGS, "twice": "yes"}


def test_every_cell_is_run_or_has_a_source() -> None:
    hooks, accelerate = tuple(peers.HOOKS), ("fp16", "power_sgd")
    found = dict.fromkeys(trials(hooks, accelerate, ""), "hangs")
    rows = [
        *(table.torch_row(hook, found) for hook in hooks),
        *(table.accelerate_row(kind, found) for kind in accelerate),
        *quoted_rows(),
        table.tightgrad_row(found),
    ]
    for row in rows:
        assert wrong(row, EncodeTimelineRow, "row") == []
        for column in COLUMNS:
            cell = row[column]
            assert cell["how"] in ("run", "quoted")
            assert cell["source"].startswith("https://") == (cell["how"] == "quoted"), (row["method"], column)
    assert all(rows[-1][column] == {"value": "hangs", "how": "run", "source": ""} for column in COLUMNS)


def test_several_answers_come_apart() -> None:
    said = peers.each({"ddp": lambda: "yes", "fsdp2": lambda: str({}["missing"])})
    assert table._part(said, "ddp").value == "yes"
    assert table._part(said, "fsdp2").value == "KeyError"


@pytest.mark.slow
def test_the_path_of_every_plan() -> None:
    found: list[dict[str, object]] = []
    run_ranks(2, measure, ([Lane(plan, 1, 1, 1) for plan in PLANS],), found.append)
    assert [at for lane in found for at in wrong(lane, EncodeLane, "lane")] == []
    assert [lane["plan"] for lane in found] == list(PLANS)
    dense, cast, quantise, sparsify, low_rank = found
    assert dense["payload_bytes"] is low_rank["payload_bytes"] is None
    assert cast["payload_bytes"] == dense["gradient_bytes"] / 2
    for lane in found:
        assert lane["wire_bytes"] == pytest.approx(sum(lane["by_collective"].values()), rel=0.01)
        assert lane["seconds"]["collective"] > 0
    assert dense["wire_bytes"] > cast["wire_bytes"] > quantise["wire_bytes"] > low_rank["wire_bytes"]
    assert sparsify["wire_bytes"] == pytest.approx(sparsify["payload_bytes"], rel=0.01)
