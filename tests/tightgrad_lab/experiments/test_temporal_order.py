"""The task is the one of the paper, clipping decides it, and divergence is told from learning."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tightgrad_lab.experiments.run import PUBLISHED
from tightgrad_lab.experiments.temporal_order import cliff, experiment, kinds, task
from tightgrad_lab.experiments.temporal_order.experiment import EXPERIMENT
from tightgrad_lab.experiments.temporal_order.task import LEARNED, Task

TASK = Task("rnn", 10, 0, 1.0, 200, 0.1, 32, 50, 50, 500)


def test_the_two_symbols_stand_where_they_should() -> None:
    symbols, order = task.sequences(200, 50, torch.Generator().manual_seed(0))
    drawn = symbols.argmax(-1).T
    for row, label in zip(drawn.tolist(), order.tolist(), strict=True):
        places = [place for place, symbol in enumerate(row) if symbol < task.NOISE]
        assert len(places) == 2
        assert 5 <= places[0] < 10
        assert 20 <= places[1] < 25
        assert label == 2 * row[places[0]] + row[places[1]]
    assert set(order.tolist()) == {0, 1, 2, 3}


def test_a_short_sequence_is_learned() -> None:
    found = task.train(TASK)
    assert found["learned"]
    assert found["accuracy"] >= LEARNED
    assert found["steps"] <= 200
    assert len(found["curve"]) == math.ceil(found["steps"] / 2)


def test_an_explosion_ends_the_run() -> None:
    found = task.train(replace(TASK, max_norm=None, learning_rate=1e38))
    assert found["diverged"]
    assert not found["learned"]
    assert found["curve"][-1] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_kinds_learn_or_diverge(kind: str) -> None:
    steps, batch_size = (40, 16) if kind == "cnn" else (10, 2)
    careful = kinds.Run(kind, 0.1, 0, 1.0, steps, batch_size)
    found = kinds.train(careful)
    assert not found["diverged"]
    assert found["loss"] is not None
    wild = kinds.train(replace(careful, learning_rate=1e6, max_norm=None))
    assert wild["diverged"]
    json.dumps(wild, allow_nan=False)


def test_rows_count_what_was_run() -> None:
    settings = replace(EXPERIMENT.settings(full=False), kind_rates=(0.1, 1.0), kind_seeds=2)
    runs = experiment.make_runs(settings)
    found = [
        {
            "largest_norm": 5.0,
            "diverged": run.max_norm is None and run.learning_rate == 1.0,
            "loss": None if run.max_norm is None and run.learning_rate == 1.0 else run.learning_rate + run.seed,
            "clip_rate": 0.0 if run.max_norm is None else 0.5,
        }
        for run in runs
    ]
    rows = experiment.table_rows(runs, found)
    assert [row["kind"] for row in rows] == list(kinds.KINDS)
    for row in rows:
        assert (row["runs"], row["diverged"], row["diverged_with"], row["clip_rate"]) == (4, 2, 0, 0.5)
        assert row["best_rate"] == row["best_with_rate"] == 0.1
        assert row["best_loss"] == [0.1, 1.1]


def test_plain_sgd_gets_every_rate_and_clipping_the_first() -> None:
    settings = EXPERIMENT.settings(full=True)
    tasks = experiment.make_tasks(settings)
    assert {task.seed for task in tasks} == set(range(5))
    for kind, rates in settings.rates.items():
        own = [task for task in tasks if task.kind == kind]
        assert {task.learning_rate for task in own if task.max_norm is None} == set(rates)
        assert {task.learning_rate for task in own if task.max_norm is not None} == set(rates)


def test_published_result_holds_what_is_claimed() -> None:
    """Clipping turns failure into 100 % success at lengths that plain SGD fails at, over five seeds."""
    result = json.loads((PUBLISHED / "temporal_order.json").read_text(encoding="utf-8"))
    assert result["command"].endswith("--full")
    rate = result["settings"]["rates"]["rnn"][0]
    runs = [run for run in result["figure"]["runs"] if run["kind"] == "rnn" and run["learning_rate"] == rate]
    turned = []
    for length in sorted({run["length"] for run in runs}):
        by_way = {
            way: [run["learned"] for run in runs if (run["length"], run["clipped"]) == (length, way)]
            for way in (True, False)
        }
        assert len(by_way[True]) == len(by_way[False]) == 5
        if all(by_way[True]) and not any(by_way[False]):
            turned.append(length)
    assert len(turned) >= 2


def test_the_unclipped_descent_is_thrown_off_the_cliff_and_the_clipped_one_goes_on() -> None:
    found = cliff.surface()
    low, high = found["weights"][0], found["weights"][-1]
    jumps = [abs(b[0] - a[0]) for a, b in pairwise(found["without"]["places"])]
    assert max(jumps) > high - low
    assert all(low <= weight <= high for weight, _ in found["with"]["places"])
    before, after = (float(cliff.unit_loss(*torch.tensor(found["with"]["places"][i]))) for i in (0, -1))
    assert after < before
    assert all(
        math.dist(a, b) <= found["rate"] * found["max_norm"] * (1 + 1e-9) for a, b in pairwise(found["with"]["places"])
    )


def test_gradients_explode_vanish_or_last_on_the_way_back() -> None:
    last = {(one["kind"], one["gain"]): one["norms"] for one in cliff.on_the_way_back((30,))}
    assert all(len(norms) == 30 for norms in last.values())
    assert last["rnn", 0.9][-1] < 0.02 * last["rnn", 0.9][0]
    assert last["rnn", 1.5][-1] > 5 * last["rnn", 1.5][0]
    assert last["lstm", 1.0][-1] > 0.1 * last["lstm", 1.0][0]
