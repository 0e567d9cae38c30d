"""What DGC needs beside its codec, and two real ranks that train with it."""

from dataclasses import replace
from typing import Any

import pytest

import tightgrad as tg
from tightgrad.core.types import GradSpec
from tightgrad_lab.cases.image import ImageCase
from tightgrad_lab.experiments.accuracy_vs_bytes.experiment import (
    EXPERIMENT,
    LONG,
    SHORT,
    make_jobs,
    measured,
    train_jobs,
)
from tightgrad_lab.experiments.accuracy_vs_bytes.methods import (
    METHODS,
    MOMENTUM_CORRECTION,
    make_plan,
    training_settings,
)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.id)
def test_every_plan_can_be_written_down(method: Any) -> None:
    for feedback in method.feedbacks:
        plan = make_plan(method, feedback, momentum=0.9, warmup_steps=10)
        assert tg.Plan.from_json(plan.to_json()) == plan
        assert plan.compress is not None
        assert (plan.compress.feedback is None) == (feedback == "none")


def test_momentum_moves_into_the_feedback_of_dgc() -> None:
    settings = ImageCase().settings(full=False)
    own = training_settings(settings, MOMENTUM_CORRECTION)
    assert own.momentum == 0
    assert own.weight_decay == pytest.approx(10 * settings.weight_decay)
    assert training_settings(settings, "error_feedback") == settings
    plan = make_plan(METHODS["dgc_01"], MOMENTUM_CORRECTION, settings.momentum, warmup_steps=100)
    assert plan.local_clip is not None
    assert plan.compress is not None
    assert plan.compress.feedback == tg.feedback.MomentumCorrection(0.9)


def test_the_density_of_dgc_falls() -> None:
    plan = make_plan(METHODS["dgc_01"], MOMENTUM_CORRECTION, 0.9, warmup_steps=100)
    assert plan.compress is not None
    assert plan.compress.codec is not None
    shape = (128, 1152)
    sizes = [
        plan.compress.codec.payload_nbytes(GradSpec("w", shape, shape[0] * shape[1], step=step))
        for step in (0, 50, 100)
    ]
    assert None not in sizes
    assert sizes[0] > 10 * sizes[1] > 100 * sizes[2]


def test_the_full_settings_run_over_three_seeds_with_dense_first() -> None:
    settings = EXPERIMENT.settings(full=True)
    jobs = make_jobs(settings)
    assert len(jobs) == 3 * len(LONG)
    assert all(kind in METHODS[method].feedbacks for method, kind in (*SHORT, *LONG))
    assert jobs[0].method == "dense"


def test_factors_are_those_of_the_same_seed() -> None:
    settings = replace(EXPERIMENT.settings(full=False), seeds=2, runs=(("dense", "none"), ("int4", "none")))
    found = [
        {"accuracy": 0.9, "losses": [0.1], "wire_bytes": 800, "last_step": 80, "step_seconds": 1.0}
        | {"residual_norm": None, "diverged": False},
        {"accuracy": 0.8, "losses": [0.2], "wire_bytes": 100, "last_step": 20, "step_seconds": 1.0}
        | {"residual_norm": None, "diverged": False},
        {"accuracy": 0.9, "losses": [0.1], "wire_bytes": 1600, "last_step": 80, "step_seconds": 1.0}
        | {"residual_norm": None, "diverged": False},
        {"accuracy": None, "losses": [], "diverged": True},
    ]
    table = measured(settings, make_jobs(settings), found).table
    assert table[0]["compression_factor"] == [1.0, 1.0]
    assert table[1]["compression_factor"] == [8.0]
    assert table[1]["last_step_factor"] == [4.0]
    assert table[1]["diverged"] == 1


@pytest.mark.slow
def test_two_ranks_train() -> None:
    runs = (("dense", "none"), ("dgc_01", "momentum_correction"))
    settings = replace(EXPERIMENT.settings(full=False), epochs=1, batch_size=600, runs=runs)
    told: list[float] = []
    jobs = make_jobs(settings)
    found = train_jobs(settings, jobs, lambda share, text: told.append(share))
    assert told[-1] == 1.0
    dense, dgc = found
    assert dense["wire_bytes"] > 2 * dgc["wire_bytes"]
    assert dense["last_step"] > 50 * dgc["last_step"]
    assert dgc["residual_norm"] > 0
    assert all(one["losses"][-1] < 3 for one in found)
