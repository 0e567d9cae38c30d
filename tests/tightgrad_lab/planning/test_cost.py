"""The cost model: its equations, what is counted against real collectives, and which plan it recommends."""

import json

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.collectives import run_threaded
from tightgrad.collectives.traffic import all_reduce_nbytes
from tightgrad_lab.cli import app as cli
from tightgrad_lab.common.recommended import RECOMMENDED
from tightgrad_lab.planning import scale
from tightgrad_lab.planning.advise import DENSE, advise, fastest_or_dense, plan_named
from tightgrad_lab.planning.cost import Compute, PathCost, ddp_buckets, ddp_seconds, plan_seconds
from tightgrad_lab.planning.estimate import OptimizerMemory
from tightgrad_lab.planning.link import Call, Link, seconds_of
from tightgrad_lab.planning.measure import measure_path
from tightgrad_lab.planning.memory import Footprint, Held
from tightgrad_lab.planning.run import Matrices

COMPUTE = Compute(0.2, 0.4, 0.1)
SLOW = Link(1e-3, 1.25e6)
MEMORY = Footprint((Held(200_000, "float32", True),), OptimizerMemory(2.0, 0.0, False), None)


def test_a_call_is_hops_and_bytes() -> None:
    assert seconds_of(Call("all_gather", 3_000), 4, SLOW) == pytest.approx(3 * 1e-3 + 3_000 / 1.25e6)
    assert seconds_of(Call("all_reduce", 1_000), 2, SLOW) == pytest.approx(2 * 1e-3 + 1_000 / 1.25e6)


def test_dense_hides_behind_backward_only_what_is_ready() -> None:
    instant = Link(0.0, 1e15)
    assert ddp_seconds(COMPUTE, [10**6, 10**6], 2, instant) == pytest.approx(COMPUTE.seconds)
    numels = [7 * 10**6, 3 * 10**5]  # the last parameter fills the first bucket, three tenths of a 7.3th of backward
    sent = all_reduce_nbytes(4 * 7 * 10**6, 2) / SLOW.bytes_per_second
    first = 0.4 * 3 / 73 + all_reduce_nbytes(4 * 3 * 10**5, 2) / SLOW.bytes_per_second + 2e-3
    expected = 0.2 + max(first, 0.4) + sent + 2e-3 + 0.1
    assert ddp_seconds(COMPUTE, numels, 2, SLOW) == pytest.approx(expected)


def test_buckets_are_those_of_ddp() -> None:
    mebibyte = 2**20
    assert ddp_buckets([mebibyte, 20 * mebibyte, 10 * mebibyte, mebibyte]) == [mebibyte, 30 * mebibyte, mebibyte]


@pytest.mark.parametrize("name", RECOMMENDED)
def test_calls_are_those_of_a_step(name: str) -> None:
    """What the measurement counts is what the same plan sends from a rank in training."""
    model = nn.Sequential(nn.Linear(40, 64), nn.Linear(64, 8))
    path = measure_path(model, RECOMMENDED[name], 3, repeats=2)

    def body(collective: tg.collectives.ThreadedCollective) -> int | None:
        own = nn.Sequential(nn.Linear(40, 64), nn.Linear(64, 8))
        pipe = tg.attach(own, torch.optim.SGD(own.parameters(), 0.0), RECOMMENDED[name], collective=collective)
        records = []
        for window in pipe.windows(torch.ones(2, 5, 40)):
            for batch in window:
                pipe.backward(own(batch).mean())
            records.append(pipe.step())
        return records[-1].wire_bytes

    assert path.wire_bytes == run_threaded(3, body)[0]
    assert path.seconds > 0


def advice(link: Link) -> str | None:
    mild, strong = (Call("all_gather", 200_000),), (Call("all_gather", 20_000),)
    paths = {"8-bit blocks": PathCost(0.05, mild), "topk 0.1 %": PathCost(0.07, strong)}
    return advise(COMPUTE, [200_000], paths, 2, link, MEMORY, 10**9).recommended


def test_the_advice_follows_the_link() -> None:
    assert advice(Link(1e-4, 1e4)) == "topk 0.1 %"
    assert advice(Link(1e-4, 1e7)) is None, "dense loses nothing, and is as fast"
    assert plan_named(None) == tg.Plan()


def test_a_milder_plan_that_is_nearly_as_fast_is_named() -> None:
    paths = {
        "8-bit blocks": PathCost(0.05, (Call("all_gather", 40_000),)),
        "topk 0.1 %": PathCost(0.07, (Call("all_gather", 10_000),)),
    }
    found = advise(COMPUTE, [2_000_000], paths, 2, SLOW, MEMORY, 10**9)
    seconds = {row.plan: row.predicted_step_seconds for row in found.predictions}
    assert seconds["topk 0.1 %"] < seconds["8-bit blocks"] < 1.02 * seconds["topk 0.1 %"]
    assert found.recommended == "topk 0.1 %"
    assert "8-bit blocks takes 1.01 times as long" in found.reason
    assert seconds["8-bit blocks"] == pytest.approx(plan_seconds(COMPUTE, paths["8-bit blocks"], 2, SLOW))
    assert list(seconds) == [DENSE, *paths]


def test_dense_is_taken_only_where_it_is_nearly_as_fast() -> None:
    assert fastest_or_dense({DENSE: 1.05, "8-bit blocks": 1.0, "topk 0.1 %": 1.2}) == DENSE
    assert fastest_or_dense({DENSE: 1.06, "8-bit blocks": 1.0, "topk 0.1 %": 0.999}) == "topk 0.1 %"
    assert fastest_or_dense({DENSE: 0.9, "8-bit blocks": 1.0}) == DENSE


@pytest.fixture
def _timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are those of one step; how long it takes is not asked."""
    monkeypatch.setattr(scale, "REPEATS", 1)


@pytest.mark.usefixtures("_timed_once")
@pytest.mark.parametrize("ranks", [5, pytest.param(16, marks=pytest.mark.slow)])
def test_at_scale_bytes_are_those_that_are_counted(ranks: int) -> None:
    """Carried on from 3 and 8 ranks, bytes on 5 and 16 are those of real steps on 5 and 16."""
    machine = scale.Machine(300_000, 0.1, SLOW, Link(1e-6, 1e9), 1)
    lines = scale.measure_lines(machine)
    model = Matrices(machine.num_parameters)
    for name, plan in scale.plans(1).items():
        if name == "sparse_two_shot" and ranks == 16:
            continue  # each of its chunks sends one entry at least
        counted = measure_path(model, plan, ranks, 1).wire_bytes
        carried = sum(call.nbytes for call in scale.calls_at(lines[name], ranks))
        assert carried == pytest.approx(counted, rel=0.1), (name, ranks)


def test_plan_prints_rows_and_writes_the_plan(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    out = tmp_path / "plan.json"
    arguments = ["plan", "--parameters", "50000", "--step-seconds", "0.01", "--rate", "10mbit", "--out", str(out)]
    assert cli.run([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["plan"] for row in printed["rows"]] == [DENSE, *RECOMMENDED]
    assert all({"predicted_step_seconds", "memory_bytes", "reason"} <= row.keys() for row in printed["rows"])
    assert printed["recommended"] in RECOMMENDED
    assert tg.Plan.from_json(out.read_text()) == RECOMMENDED[printed["recommended"]]
    assert printed["link"] == {"latency_seconds": 0.0002, "bytes_per_second": 1.25e6}


@pytest.mark.usefixtures("_timed_once")
def test_scale_reaches_4096_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "scale", "--parameters", "100000", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    names = {"dense", "two_shot", "gather", "sparse_two_shot", "powersgd", "hierarchical"}
    assert {row["plan"] for row in printed["rows"]} == names
    assert max(row["ranks"] for row in printed["rows"]) == 4096
    gather = {row["ranks"]: row["wire_bytes_per_rank"] for row in printed["rows"] if row["plan"] == "gather"}
    assert gather[4096] > 400 * gather[8], "a gather's bytes grow with the number of ranks"


@pytest.mark.slow
def test_local_ranks_measure_their_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "examples/audit/correct_raw_ddp.py", "--ranks", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["link"]["bytes_per_second"] > 0
    assert printed["compute"]["backward_seconds"] > 0
    assert all(row["largest_micro_batch"] >= 1 for row in printed["rows"])
