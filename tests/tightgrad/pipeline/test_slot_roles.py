"""What a method from outside remembers is flushed, reported and measured by its slot's role, whatever its name."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.collectives import run_threaded
from tightgrad.core.protocols import Feedback, ReduceContext
from tightgrad.core.types import Grads, Reduced, Slot, State
from tightgrad.reducers.powersgd import WARM_START
from tightgrad.sync.compressed import residual_norm

EARLY = Slot("my_early", across_ranks="sum", like_parameter=True, dtype=torch.float32, role="residual")
LATE = Slot("my_late", across_ranks="sum", like_parameter=True, dtype=torch.float32, role="residual")
UNNAMED = replace(EARLY, role=None)


@dataclass(frozen=True)
class Kept(Feedback):
    """Error feedback, with its residual in one slot of another name."""

    card = replace(tg.ErrorFeedback.card, id="kept")
    slots: ClassVar = (EARLY,)

    def reduce_(self, grads: Grads, state: State, inner) -> Reduced:
        held = [state.get(slot.name, {}) for slot in self.slots]
        values = {n: sum((part[n] for part in held if n in part), grad.clone()) for n, grad in grads.items()}
        reduced = inner(values)
        left = {name: value - reduced.transmitted[name] for name, value in values.items()}
        kept = zip(self.slots, held, self.parts(left), strict=True)
        return Reduced(
            reduced.total, reduced.transmitted, {**reduced.state, **{s.name: {**old, **new} for s, old, new in kept}}
        )

    def parts(self, left: Grads) -> list[Grads]:
        return [left]


class KeptInTwo(Kept):
    """A quarter of it in a second slot."""

    card = replace(tg.ErrorFeedback.card, id="kept_in_two")
    slots: ClassVar = (EARLY, LATE)

    def parts(self, left: Grads) -> list[Grads]:
        return [{n: 0.75 * v for n, v in left.items()}, {n: 0.25 * v for n, v in left.items()}]


class Roleless(Kept):
    card = replace(tg.ErrorFeedback.card, id="roleless")
    slots: ClassVar = (UNNAMED,)


class Renamed(tg.reducers.PowerSGD):
    """PowerSGD whose factors have another name."""

    card = replace(tg.reducers.PowerSGD.card, id="renamed")
    slots: ClassVar = (replace(WARM_START, name="my_factors"),)

    def reduce(self, grads: Grads, codec, state: State, context: ReduceContext) -> Reduced:
        reduced = super().reduce(grads, codec, {WARM_START.name: state.get("my_factors", {})}, context)
        return replace(reduced, state={"my_factors": reduced.state[WARM_START.name]})


class Sum(torch.optim.Optimizer):
    """Adds up what it is given and changes nothing."""

    def __init__(self, parameters) -> None:
        super().__init__(list(parameters), {})
        self.total = [torch.zeros_like(p, dtype=torch.float64) for p in self.param_groups[0]["params"]]

    def step(self) -> None:
        for total, parameter in zip(self.total, self.param_groups[0]["params"], strict=True):
            total += parameter.grad


with torch.random.fork_rng():  # ranks are threads, which share torch's generator
    torch.manual_seed(0)
    MODEL = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 12))


def run(collective, compress: tg.Compress, steps: int = 4):
    model = copy.deepcopy(MODEL)
    optimizer = Sum(model.parameters())
    pipe = tg.attach(model, optimizer, tg.Plan(compress=compress), collective=collective)
    generator = torch.Generator().manual_seed(collective.rank)
    records = []
    for window in pipe.windows([torch.randn(4, 20, generator=generator) for _ in range(steps)]):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        records.append(pipe.step())
    return pipe, records, optimizer


@pytest.mark.parametrize("feedback", [Kept(), KeptInTwo()], ids=["one", "two"])
def test_a_feedback_from_outside_is_reported_and_flushed(feedback: Feedback) -> None:
    codec = tg.codecs.TopK(0.02)

    def body(collective):
        _, _, exact = run(collective, tg.Compress())
        _, ours, _ = run(collective, tg.Compress(codec, feedback=tg.ErrorFeedback()))
        pipe, records, optimizer = run(collective, tg.Compress(codec, feedback=feedback))
        flushed = [pipe.flush(), pipe.flush()]
        return exact.total, ours, records, flushed, optimizer.total, pipe.state_dict()["slots"]

    for exact, ours, records, (flushed, nothing), total, slots in run_threaded(2, body):
        scale = [1.0, 0.75][len(feedback.slots) - 1]
        expected = [record.residual_norm * (scale**2 + (1 - scale) ** 2) ** 0.5 for record in ours]
        assert expected[-1] > 0
        assert [record.residual_norm for record in records] == pytest.approx(expected, rel=1e-5)
        assert not flushed.skipped
        assert flushed.residual_norm is None
        assert nothing.skip_reason == "no_residual"
        assert not slots.keys() & {"my_early", "my_late"}
        for mine, want in zip(total, exact, strict=True):
            assert (mine - want).abs().max() < 1e-5 * want.abs().max()


def test_a_slot_without_a_role_is_named_when_there_is_nothing_to_flush() -> None:
    def body(collective):
        pipe, records, _ = run(collective, tg.Compress(tg.codecs.TopK(0.02), feedback=Roleless()))
        assert all(record.residual_norm is None for record in records)
        with pytest.raises(tg.UsageError, match=r"If 'my_early' holds what was not sent, its Slot needs role=\"resid"):
            pipe.flush()

    run_threaded(2, body)


def test_residuals_are_reported_by_local_updates() -> None:
    slots = tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.02), feedback=KeptInTwo())).slots
    state = {"my_early": {"w": torch.full((4,), 1.5)}, "my_late": {"w": torch.full((4,), 2.0)}}
    assert residual_norm(state, slots) == 5.0
    assert residual_norm({}, slots) is None

    def body(collective):
        model = copy.deepcopy(MODEL)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        plan = tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.02), feedback=Kept()))
        outer = tg.attach_local(model, tg.LocalSGD(every=2, plan=plan), collective=collective)
        records = []
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.full((4, 20), 1.0 + collective.rank)).square().mean().backward()
            optimizer.step()
            records.append(outer.step())
        return [record for record in records if record is not None]

    for records in run_threaded(2, body):
        assert len(records) == 2
        assert all(record.residual_norm > 0 for record in records)


def test_factors_of_another_name_are_measured() -> None:
    def body(collective):
        _, ours, _ = run(collective, tg.Compress(reducer=tg.reducers.PowerSGD(2)), steps=11)
        _, theirs, _ = run(collective, tg.Compress(reducer=Renamed(2)), steps=11)
        return [record.warm_start_overlap for record in ours], [record.warm_start_overlap for record in theirs]

    for ours, theirs in run_threaded(2, body):
        assert ours[10] is not None
        assert theirs == ours


@pytest.mark.parametrize(
    "settings",
    [{"across_ranks": "equal", "like_parameter": True}, {"across_ranks": "sum"}, {"across_ranks": "equal"}],
)
def test_a_residual_is_a_ranks_own_and_shaped_like_its_parameter(settings: dict) -> None:
    with pytest.raises(tg.ConfigError, match=r"slot 'mine' has role=\"residual\".*across_ranks=\"sum\" and like_par"):
        Slot("mine", role="residual", **settings)


def test_two_methods_may_not_remember_under_one_name() -> None:
    class Clash(Kept):
        slots: ClassVar = (replace(WARM_START, name="powersgd_warm_start"),)

    with pytest.raises(tg.IncompatiblePlanError, match=r"PowerSGD and Clash both remember .* 'powersgd_warm_start'"):
        tg.Plan(compress=tg.Compress(reducer=tg.reducers.PowerSGD(2), feedback=Clash()))
    late = tg.Compress(
        tg.codecs.TopK(0.1), feedback=type("Late", (Kept,), {"slots": (replace(LATE, name="loss_scale"),)})()
    )
    with pytest.raises(tg.IncompatiblePlanError, match=r"LossScale and Late both remember something as 'loss_scale'"):
        tg.Plan(compress=late, loss_scale=tg.LossScale())
