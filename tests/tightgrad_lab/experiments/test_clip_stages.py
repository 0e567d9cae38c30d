"""The stages are those of the pipeline, and the published comparison agrees to 1e-6."""

import json

import pytest
import torch

import tightgrad as tg
from tightgrad_lab.bench.frameworks.framework import NAMES
from tightgrad_lab.common import byte_model
from tightgrad_lab.experiments.clip_stages import experiment
from tightgrad_lab.experiments.clip_stages.path import ABOVE, LANES, LEARNING_RATE, STAGES, Walk, measure_lanes
from tightgrad_lab.report.pairs.clip_stages import CANNOT

BOUND = 0.05
AGREEMENT = 1e-6


@pytest.mark.parametrize(("name", "fold"), [("multiply", "off"), ("fold", "on")])
def test_the_stages_are_the_pipelines(name: str, fold: str) -> None:
    """Two steps of two micro-batches: bitwise the same weights."""
    generator = torch.Generator().manual_seed(1)
    windows = [[byte_model.batch(1, generator) for _ in range(2)] for _ in range(2)]
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(byte_model.ByteTransformer(width=16, layers=1))
    walk = Walk(name, models[0], BOUND)
    for pieces in windows:
        walk.optimizer.zero_grad()
        for run in walk.stages(pieces).values():
            run()
    optimizer = torch.optim.AdamW(models[1].parameters(), LEARNING_RATE, fused=True)
    plan = tg.Plan(accumulate=tg.Accumulate(2), clip=tg.clip.GlobalNorm(BOUND, fold=fold))
    pipe = tg.attach(models[1], optimizer, plan, weight=len)
    for window in pipe.windows([part for pieces in windows for part in pieces]):
        for batch in window:
            pipe.backward(byte_model.loss(models[1], batch))
        record = pipe.step()
        assert record.clip_coef is not None
    assert record.clip_coef < 1.0
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_lanes_touch_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_model.ByteTransformer.__init__, "__defaults__", (32, 1))
    found = measure_lanes(0, 1, 1, 1, lambda share: None)
    assert [lane["lane"] for lane in found] == list(LANES)
    for lane in found:
        assert list(lane["seconds"]) == list(STAGES)
        per_parameter = {s: (b or 0) / lane["num_parameters"] for s, b in lane["memory_bytes"].items()}
        assert per_parameter["norm"] == pytest.approx(4, rel=0.1)
        written = 8 if lane["lane"] in ("multiply", "torch") else 0
        assert per_parameter["multiply"] == pytest.approx(written, abs=0.2)
        assert lane["clip_coef"] == (1.0 if lane["lane"] == "below" else pytest.approx(ABOVE))


def published() -> dict[str, list[dict[str, object]]]:
    table = json.loads(experiment.PUBLISHED.read_text(encoding="utf-8"))["table"]
    return {name: [row for row in table if row["framework"] == name] for name in NAMES.values()}


def test_published_result_agrees() -> None:
    """TensorFlow and optax to 1e-6; torch's own sum over a million numbers is further from float64 than that."""
    rows = published()
    assert all(rows.values())
    for name in ("TensorFlow", "JAX/optax"):
        assert max(row["largest_relative_difference"] for row in rows[name]) < AGREEMENT
    for own in rows.values():
        assert max(row["tightgrad_error"] for row in own) < AGREEMENT
        assert all((row["framework"], row["method"]) in CANNOT for row in own)
        assert all(row["measured"] is None for row in own)


def test_what_is_missing_is_taken_from_the_published_result() -> None:
    rows = experiment.published_rows(["optax"])
    assert {row["framework"] for row in rows} == {"JAX/optax"}
    assert len(rows) == len(published()["JAX/optax"])
    assert all(row["measured"] for row in rows)
    assert experiment.published_rows([]) == []
