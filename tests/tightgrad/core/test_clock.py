"""Stages have their seconds in the record, and their ranges in a trace of torch.profiler, where one runs."""

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tightgrad as tg
from tightgrad.core import clock
from tightgrad.core.clock import STAGES, StageClock

ROOT = Path(__file__).parents[3]
PLAN = tg.Plan(
    accumulate=tg.Accumulate(micro_batches=2),
    compress=tg.Compress(tg.codecs.TopK(0.25), feedback=tg.ErrorFeedback()),
    clip=tg.clip.GlobalNorm(0.1),
    local_clip=1.0,
)


def one_step(plan: tg.Plan, around: AbstractContextManager[object]) -> tg.StepRecord:
    model = torch.nn.Linear(8, 4)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    window = next(iter(pipe.windows([torch.ones(3, 8)] * (2 if plan.accumulate else 1))))
    with around:
        for batch in window:
            pipe.backward(model(batch).square().mean())
        return pipe.step()


@pytest.mark.parametrize("plan", [PLAN, tg.Plan()], ids=["whole", "empty"])
def test_every_stage_of_a_step_is_a_range_of_the_trace(plan: tg.Plan) -> None:
    trace = profile(activities=[ProfilerActivity.CPU])
    record = one_step(plan, trace)
    ranges = {event.key: event.count for event in trace.key_averages() if event.key.startswith("tightgrad.")}
    assert ranges.keys() == {f"tightgrad.{stage}" for stage in record.stage_seconds}
    assert {"tightgrad.backward", "tightgrad.optimizer"} <= ranges.keys()
    if plan is PLAN:
        assert {"guard", "local_clip", "encode", "collective", "decode", "clip"} <= record.stage_seconds.keys()
        assert ranges["tightgrad.backward"] == 4, "scaled, and run, for each of two micro-batches"


def test_without_a_profiler_no_range_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "record_function", None)
    assert one_step(PLAN, nullcontext()).stage_seconds


def test_a_stage_that_raises_ends_its_range_and_counts() -> None:
    stages = StageClock()
    with (
        profile(activities=[ProfilerActivity.CPU]) as trace,
        pytest.raises(ValueError, match="planted"),
        stages("guard"),
    ):
        raise ValueError("planted")
    assert stages.pop().keys() == {"guard"}
    assert [event.key for event in trace.key_averages() if "tightgrad" in event.key] == ["tightgrad.guard"]


def test_all_stages_of_the_library_are_named_and_documented() -> None:
    found = {
        name
        for path in (ROOT / "src" / "tightgrad").rglob("*.py")
        for name in re.findall(r'clock\("(\w+)"\)', path.read_text(encoding="utf-8"))
    }
    assert found == STAGES.keys()
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    for stage in STAGES:
        assert f"`tightgrad.{stage}`" in page
