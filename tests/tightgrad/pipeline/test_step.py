"""A step: what belongs to one window is in it, and goes with it; who may change gradients on their way, and when."""

import weakref
from dataclasses import dataclass, replace

import pytest
import torch

import tightgrad as tg
from support.training import batches, linear
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import Clipped
from tightgrad.pipeline.plain_step import PlainStep
from tightgrad.pipeline.step import Step


@dataclass(frozen=True)
class Halving(Clipper):
    """A clipper of another package: one factor, and no base class of this one's."""

    fold: str = "auto"
    card = replace(tg.clip.GlobalNorm.card, id="halving")

    def factor(self, grads, norm, state):
        total = norm(list(grads.values()))
        return Clipped(total, torch.full_like(total, 0.5))

    def clip_(self, grads, params, norm, state):
        raise AssertionError("factor() says it all")


def run(pipe, model, data):
    records = []
    for window in pipe.windows(data):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        records.append(pipe.step())
    return records


@pytest.mark.parametrize("fold", ["auto", "off"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_clipper_from_outside_with_one_factor(fold, fused):
    """Folded into the optimizer where it may be, multiplied elsewhere: the step is that of half the gradient."""
    model, expected = linear(), linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    (record,) = run(tg.attach(model, optimizer, tg.Plan(clip=Halving(fold))), model, batches(1))
    expected(batches(1)[0]).square().mean().backward()
    torch.optim.SGD(expected.parameters(), lr=0.05).step()
    assert record.clip_coef == 0.5
    for mine, want in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, want)


def test_the_guard_sees_what_a_hook_before_the_clip_has_made_of_the_gradients():
    model = linear()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(guard=tg.Guard("skip")))
    pipe.parts.before_clip = lambda grads: next(iter(grads.values())).fill_(torch.nan)
    (record,) = run(pipe, model, batches(1))
    assert record.skip_reason == "nonfinite"
    assert all(map(torch.equal, model.parameters(), before))
    pipe.parts.before_clip = lambda grads: next(iter(grads.values())).fill_(1.0)
    (record,) = run(pipe, model, batches(1))
    assert not record.skipped
    assert record.grad_norm >= 1.0


def left(pipe, model):
    """Whether anything of a window is there."""
    return pipe._step is not None or any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("ends_by", ["abandon", "load_state_dict", "close"])
def test_a_window_that_is_dropped_leaves_nothing_to_the_next(ends_by):
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(2), noise_scale=tg.scaling.NoiseScale())
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan)
    state = pipe.state_dict()
    for window in pipe.windows(batches(2)):
        for batch in window:
            pipe.backward(1e6 * model(batch).square().mean())
            break
        break
    assert left(pipe, model)
    getattr(pipe, ends_by)(*[state][: ends_by == "load_state_dict"])
    assert not left(pipe, model)
    if ends_by == "close":
        return
    other = linear()
    fresh = tg.attach(other, torch.optim.SGD(other.parameters(), lr=0.0), plan)
    (expected,), (record,) = run(fresh, other, batches(2)), run(pipe, model, batches(2))
    assert (record.loss, record.grad_norm, record.noise_scale) == (
        expected.loss,
        expected.grad_norm,
        expected.noise_scale,
    )


@pytest.mark.parametrize(("plan", "kind"), [(tg.Plan(), PlainStep), (tg.Plan(clip=Halving()), Step)])
def test_each_window_has_a_step_of_its_own(plan, kind):
    model = linear()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    steps = []
    for window in pipe.windows(batches(3)):
        steps.append(pipe._step)
        for batch in window:
            pipe.backward(model(batch).square().mean())
        pipe.step()
        assert not left(pipe, model)
    assert len({id(step) for step in steps}) == 3
    assert {type(step) for step in steps} == {kind}


def test_a_loss_is_held_by_nobody_while_its_backward_runs():
    """As in a loop by hand that scales its loss: what only the loss holds is freed as backward goes on."""
    model = linear()
    given, alive = [], []
    model.bias.register_hook(lambda grad: alive.append(given[-1]() is not None))

    def loss_of(batch):
        loss = model(batch).square().mean()
        given.append(weakref.ref(loss))
        return loss

    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(clip=Halving()))
    for window in pipe.windows(batches(1)):
        for batch in window:
            pipe.backward(loss_of(batch))
        pipe.step()
    assert alive == [False]
