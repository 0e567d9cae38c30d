"""One pipeline at a time owns a model's gradients and its optimizer's step."""

import contextlib
import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.pipeline.premises.ownership import StepGuard

K = 2
PLAN = tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(1.0))
OUTSIDE = "was called from outside.*pipe.step.*pipe.close"


def made(plan=PLAN, kind=torch.optim.SGD, **settings):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = kind(model.parameters(), lr=0.1, **settings)
    return model, optimizer, tg.attach(model, optimizer, plan)


def loss_of(model, batch=None):
    return model(torch.ones(2, 4) if batch is None else batch).square().mean()


def trained(pipe, model, windows=1):
    for window in pipe.windows([torch.ones(2, 4)] * (K * windows)):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        record = pipe.step()
    return record


class OwnStep(torch.optim.SGD):
    """A step of its own around torch's."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, OwnStep])
def test_the_old_loop_after_attach_is_an_error(kind):
    model, optimizer, pipe = made(kind=kind)
    before = model.weight.clone()
    loss_of(model).backward()
    with pytest.raises(tg.UsageError, match=OUTSIDE):
        optimizer.step()
    assert torch.equal(model.weight, before)
    assert not optimizer.state
    assert not trained(pipe, model).skipped
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("where", ["inside", "between", "closure", "scaler", "schedule"])
def test_a_step_from_outside_is_an_error_wherever_it_comes(where):
    model, optimizer, pipe = made()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps step on the instance
    trained(pipe, model)
    if where == "schedule":
        schedule.step()
    before = model.weight.clone()
    for window in pipe.windows([torch.ones(2, 4)] * K):
        for batch in window:
            pipe.backward(loss_of(model, batch))
            if where == "inside":
                with pytest.raises(tg.UsageError, match=OUTSIDE):
                    optimizer.step()
        pipe.abandon()
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(loss_of(model)).backward()
    steps = {"closure": lambda: optimizer.step(lambda: loss_of(model)), "scaler": lambda: scaler.step(optimizer)}
    with pytest.raises(tg.UsageError, match=OUTSIDE):
        steps.get(where, optimizer.step)()
    assert torch.equal(model.weight, before)
    trained(pipe, model)


@pytest.mark.parametrize("end", ["close", "context", "let go"])
def test_afterwards_the_optimizer_is_free(end):
    model, optimizer, pipe = made()
    trained(pipe, model)
    if end == "close":
        pipe.close()
        pipe.close()
    elif end == "context":
        with contextlib.closing(pipe):
            trained(pipe, model)
    else:
        was = weakref.ref(pipe)
        gc.disable()
        try:
            del pipe
            assert was() is None, "it must not live on in a cycle, where its guard would"
        finally:
            gc.enable()
    assert not optimizer._optimizer_step_pre_hooks
    before = model.weight.clone()
    loss_of(model).backward()
    optimizer.step()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("call", ["windows", "backward", "step", "flush", "load_state_dict"])
def test_a_closed_pipeline_is_not_used(call):
    model, _, pipe = made()
    trained(pipe, model)
    state = pipe.state_dict()
    windows = pipe.windows([torch.ones(2, 4)])
    next(windows)
    pipe.close()
    calls = {
        "windows": lambda: next(pipe.windows([torch.ones(2, 4)])),
        "backward": lambda: pipe.backward(loss_of(model)),
        "step": pipe.step,
        "flush": pipe.flush,
        "load_state_dict": lambda: pipe.load_state_dict(state),
    }
    with pytest.raises(tg.UsageError, match=r"is closed; call attach\(\) again"):
        calls[call]()
    assert pipe.state_dict()["step"] == 1
    assert model.weight.grad is None, "of the window that was open"
    assert not trained(tg.attach(model, torch.optim.SGD(model.parameters()), PLAN), model).skipped


def test_the_last_attach_takes_over():
    model, optimizer, old = made()
    windows = old.windows([torch.ones(2, 4)] * K)
    for batch in next(windows):
        old.backward(loss_of(model, batch))
    new = tg.attach(model, optimizer, PLAN)
    for use in (old.step, lambda: old.backward(loss_of(model)), old.flush, lambda: next(windows)):
        with pytest.raises(tg.UsageError, match=r"attach\(\) was called again on the model"):
            use()
    for window in new.windows([torch.ones(2, 4)] * K):
        for batch in window:
            new.backward(loss_of(model, batch))
        old.abandon()
        old.close()
        assert not new.step().skipped
    with pytest.raises(tg.UsageError, match=OUTSIDE):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:.*not in the optimizer:tightgrad.TightGradWarning")
def test_two_optimizers_are_not_two_pipelines_in_one_loop():
    """Muon for matrices and AdamW for the rest: each backward would add to what the other pipeline has."""
    model = nn.Linear(4, 1)
    first, second = (tg.attach(model, torch.optim.SGD([p], lr=0.1), PLAN) for p in model.parameters())
    for one, other in zip(first.windows([torch.ones(2, 4)]), second.windows([torch.ones(2, 4)]), strict=True):
        for _ in zip(one, other, strict=True):
            first.backward(loss_of(model))
            with pytest.raises(tg.UsageError, match=r"'bias' .new.*another TightGrad pipeline"):
                second.backward(loss_of(model))
        first.abandon()
        second.abandon()
    assert not trained(first, model).skipped
    assert not trained(second, model).skipped


def test_a_model_with_more_or_fewer_trainable_parameters_is_taken_over_as_well():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    head = tg.attach(model, torch.optim.SGD(model[1].parameters(), lr=0.1), PLAN)
    model[0].requires_grad_(True)
    whole = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN)
    with pytest.raises(tg.UsageError, match="no longer owns"):
        trained(head, model)
    assert not trained(whole, model).skipped


def test_models_that_share_parameters_are_refused():
    shared, left, right = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)
    one, other = nn.Sequential(shared, left), nn.Sequential(shared, right)
    pipe = tg.attach(one, torch.optim.SGD(one.parameters(), lr=0.1), PLAN)
    with pytest.raises(tg.UsageError, match=r"'0.weight', '0.bias', which both models share.*close\(\)"):
        tg.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), PLAN)
    assert not trained(pipe, one).skipped
    pipe.close()
    assert not trained(tg.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), PLAN), other).skipped


def test_copies_of_the_optimizer_are_free():
    model, optimizer, pipe = made(kind=torch.optim.AdamW)
    trained(pipe, model)
    copied = copy.deepcopy(optimizer)
    copied.step()
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    torch.load(file, weights_only=False).step()
    guard = copy.deepcopy(next(iter(optimizer._optimizer_step_pre_hooks.values())))
    assert isinstance(guard, StepGuard)
    assert guard(optimizer, (), {}) is None
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(tg.UsageError, match=OUTSIDE):
        optimizer.step()


def test_the_guard_does_not_keep_a_factor_from_being_folded():
    model, _, pipe = made(plan=tg.Plan(clip=tg.clip.GlobalNorm(1e-3, fold="on")), kind=torch.optim.AdamW, fused=True)
    assert trained(pipe, model).clip_coef < 1.0
    tg.attach(model, pipe.optimizer, pipe.plan)  # asks again, with the first guard still there


def test_local_updates_let_their_inner_optimizer_be_stepped():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = tg.attach_local(model, tg.DiLoCo(every=1))
    loss_of(model).backward()
    optimizer.step()
    assert outer.step() is not None
    pipe = tg.attach(model, optimizer, PLAN)
    trained(pipe, model)
    assert outer.step() is not None
