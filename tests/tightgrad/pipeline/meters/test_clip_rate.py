"""Clip rate, the two warnings, and the worst parameters on demand."""

import logging
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.core.protocols import Collective
from tightgrad.pipeline.meters.clip_rate import NEVER_STEPS, RECENT_STEPS, ClipRate


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the library logs."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    found: list[str] = []
    handler, logger = Kept(logging.WARNING), logging.getLogger("tightgrad")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def watched(factors: list[float]) -> ClipRate:
    watch = ClipRate()
    for factor in factors:
        watch.add(factor)
    return watch


def test_nearly_always(said: list[str]) -> None:
    watch = watched([0.5] * (RECENT_STEPS - 4) + [1.0] * 4 + [0.5] * 50)
    assert len(said) == 1
    assert "96 of the last 100" in said[0]
    assert watch.rate == 0.96


def test_never(said: list[str]) -> None:
    watched([1.0] * (NEVER_STEPS + 50))
    assert "none of" in said[0]


def test_quiet_otherwise(said: list[str]) -> None:
    watch = watched([1.0, 0.5] * NEVER_STEPS)
    assert said == []
    assert watch.rate == 0.5


def test_one_line_for_all_ranks(said: list[str]) -> None:
    def body(collective: Collective) -> None:
        model = nn.Linear(2, 1)
        plan = tg.Plan(clip=tg.clip.GlobalNorm(1e-3))
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan, collective=collective)
        for window in pipe.windows([torch.ones(1, 2)] * (RECENT_STEPS + 20)):
            for batch in window:
                pipe.backward(model(batch).sum())
            pipe.step()

    tg.collectives.run_threaded(2, body)
    (message,) = said
    assert "100 of the last 100 steps were clipped" in message
    assert "Raise the bound" in message


def test_record_and_worst() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), tg.Plan(clip=tg.clip.GlobalNorm(1e-3)))
    for window in pipe.windows([torch.ones(2, 4)] * 3):
        for batch in window:
            pipe.backward(model(batch).square().mean() * 10)
        name, norm = pipe.worst(1)[0]
        assert norm == pytest.approx(max(float(p.grad.norm()) for p in model.parameters()))
        assert name in dict(model.named_parameters())
        assert pipe.step().clip_rate == 1.0
    model[0].bias.register_hook(lambda grad: torch.full_like(grad, math.nan))
    for window in pipe.windows([torch.ones(2, 4)]):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        assert pipe.worst(2)[0] == ("0.bias", math.inf)
        pipe.abandon()
