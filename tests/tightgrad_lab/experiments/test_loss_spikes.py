"""Outliers are where they should be and the same for all, spikes are counted right."""

import json
from dataclasses import replace

import pytest
import torch

from support.row_types import wrong
from tightgrad_lab.common import byte_model
from tightgrad_lab.experiments.loss_spikes import experiment, train
from tightgrad_lab.experiments.loss_spikes.experiment import CLEAN, EXPERIMENT
from tightgrad_lab.experiments.loss_spikes.train import BURST, METHODS, QUIET_STEPS, SPIKE_NATS, Run
from tightgrad_lab.report.pairs.loss_spikes import METHODS as SHOWN
from tightgrad_lab.schema.clipping import LossSpikesFigure, LossSpikesRow

RUN = Run("global_norm", 0, outliers=2, steps=120, batch_size=1, width=16, layers=1, learning_rate=1e-3)


def test_every_method_is_shown() -> None:
    assert {*METHODS, CLEAN} == SHOWN.keys()


def test_batches_of_all_methods_are_the_same_but_for_the_outliers() -> None:
    bad = set(train.outlier_steps(RUN))
    spoilt = list(train._batches(RUN, bad, torch.Generator().manual_seed(0)))
    clean = list(train._batches(RUN, set(), torch.Generator().manual_seed(0)))
    assert len(bad) == 2 * BURST
    assert min(bad) >= QUIET_STEPS
    for step, ((inputs, targets), (same_inputs, right)) in enumerate(zip(spoilt, clean, strict=True)):
        assert torch.equal(inputs, same_inputs)
        assert torch.equal(right[:, :-1], same_inputs[:, 1:])
        assert torch.equal(targets, (right + 128) % 256 if step in bad else right)
    assert int(byte_model.plays().max()) < 128


def test_spikes() -> None:
    clean: list[float | None] = [2.0 + 0.1 * (step % 3) for step in range(150)]
    losses = [None if loss is None else loss + 0.05 for loss in clean]
    outliers = [60, 61, 62, 90, 91, 92, 120, 121, 122]
    for step in outliers:
        losses[step] = None
    for step, rise in ((63, 0.5), (64, 0.25), (93, SPIKE_NATS - 0.01), (123, 1.0), (145, 9.0)):
        losses[step] = (clean[step] or 0.0) + 0.05 + rise
    found = train.spikes(losses, clean, outliers)
    assert found["spikes"] == 2
    assert found["highest"] == pytest.approx(1.0)
    assert found["lost"] == pytest.approx(0.5 + 0.25 + 0.19 + 1.0)
    assert train.spikes(clean, clean, []) == {"spikes": 0, "highest": 0.0, "lost": 0.0}


def test_a_loss_that_is_not_finite_is_a_spike() -> None:
    clean: list[float | None] = [2.0] * 100
    losses = [*clean[:60], *([None] * 40)]
    found = train.spikes(losses, clean, [60, 61, 62])
    assert found == {"spikes": 1, "highest": None, "lost": None}
    json.dumps(found, allow_nan=False)


def test_a_run_and_its_row() -> None:
    settings = replace(EXPERIMENT.settings(full=False), seeds=1, outliers=2, steps=120, batch_size=1, width=16)
    runs = [run for run in experiment.make_runs(settings) if run.method in ("none", "global_norm")]
    found = [train.train(run) for run in runs]
    json.dumps(found, allow_nan=False)
    measured = experiment.measured(settings, runs, found)
    assert wrong(measured.figure, LossSpikesFigure, "figure") == []
    assert [at for row in measured.table for at in wrong(row, LossSpikesRow, "row")] == []
    assert [row["method"] for row in measured.table] == ["none", "global_norm", CLEAN]
    assert found[0]["outliers"] == found[1]["outliers"] == train.outlier_steps(runs[0])
    assert found[2]["outliers"] == []
    assert [loss is None for loss in found[0]["losses"]].count(True) == 2 * BURST
    assert found[0]["losses"][:20] == found[2]["losses"][:20]
    assert measured.table[1]["settings"] == "GlobalNorm(1)"
    assert 0 <= measured.table[1]["runs"][0]["clip_rate"] <= 1
