"""Pair 7: outliers are where they should be and the same for all, spikes are counted right."""

import json
import math
from dataclasses import replace

import pytest
import torch

from tightgrad_lab.experiments import pair07, pair07_train
from tightgrad_lab.experiments.pair07 import CLEAN, EXPERIMENT
from tightgrad_lab.experiments.pair07_train import METHODS, QUIET_STEPS, RECENT, SPIKE_NATS, Run
from tightgrad_lab.report.pairs.pair07 import METHODS as SHOWN

RUN = Run("global_norm", 0, outliers=2, steps=80, batch_size=1, width=16, layers=1, learning_rate=1e-3)


def test_every_method_is_shown() -> None:
    assert {*METHODS, CLEAN} == SHOWN.keys()


def test_batches_of_all_methods_are_the_same_but_for_the_outliers() -> None:
    bad = set(pair07_train.outlier_steps(RUN))
    spoilt = list(pair07_train._batches(RUN, bad, torch.Generator().manual_seed(0)))
    clean = list(pair07_train._batches(RUN, set(), torch.Generator().manual_seed(0)))
    assert len(bad) == 2
    assert min(bad) >= QUIET_STEPS
    for step, (one, other) in enumerate(zip(spoilt, clean, strict=True)):
        assert torch.equal(one, other) == (step not in bad)


def test_spikes() -> None:
    losses = [2.0] * 100
    losses[60] = 2.0 + SPIKE_NATS - 0.01
    losses[70] = 2.5
    losses[80] = 3.0
    losses[90] = 9.0
    found = pair07_train.spikes(losses, {90})
    assert found["spikes"] == 2
    assert found["highest"] == pytest.approx(1.0)
    assert found["lost"] == pytest.approx(1.5)
    losses[95] = math.nan
    json.dumps(pair07_train.spikes(losses, {90}), allow_nan=False)
    assert QUIET_STEPS >= RECENT


def test_a_run_and_its_row() -> None:
    settings = replace(EXPERIMENT.settings(full=False), seeds=1, outliers=2, steps=80, batch_size=1, width=16)
    runs = [run for run in pair07.make_runs(settings) if run.method in ("none", "global_norm")]
    found = [pair07_train.train(run) for run in runs]
    json.dumps(found, allow_nan=False)
    measured = pair07.measured(settings, runs, found)
    assert [row["method"] for row in measured.table] == ["none", "global_norm", CLEAN]
    assert found[0]["outliers"] == found[1]["outliers"] == pair07_train.outlier_steps(runs[0])
    assert found[2]["outliers"] == []
    assert [loss is None for loss in found[0]["losses"]].count(True) == 2
    assert found[0]["losses"][:20] == found[2]["losses"][:20]
    assert measured.table[1]["settings"] == "GlobalNorm(1)"
    assert 0 <= measured.table[1]["runs"][0]["clip_rate"] <= 1
