"""A place for edits on purpose: after the sum over ranks, before the norm and the clip."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg

K = 2


def start():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


START = start()


def net():
    """The same weights on every call, also from several threads."""
    return copy.deepcopy(START)


def data(rank=0):
    generator = torch.Generator().manual_seed(rank)
    return [(torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(2 * K)]


def train(plan, edit, *, collective=None, optimizer=torch.optim.SGD):
    model = net()
    rank = 0 if collective is None else collective.rank
    pipe = tg.attach(model, optimizer(model.parameters(), lr=0.1), plan, before_clip=edit, collective=collective)
    records = []
    for window in pipe.windows(data(rank)):
        for inputs, target in window:
            pipe.backward(F.mse_loss(model(inputs), target))
        records.append(pipe.step())
    return model, records


def halved(grads):
    for grad in grads.values():
        grad.mul_(0.5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, lambda p, lr: torch.optim.SGD(p, lr, fused=True)])
def test_the_clip_sees_what_was_edited(optimizer):
    plan = tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(0.3))
    model, records = train(plan, halved, optimizer=optimizer)
    twin, plain = train(tg.Plan(accumulate=tg.Accumulate(K)), None)
    assert records[0].grad_norm == pytest.approx(plain[0].grad_norm / 2, rel=1e-6)
    moved = torch.cat([(a - b).detach().flatten() for a, b in zip(model.parameters(), net().parameters(), strict=True)])
    assert float(moved.norm()) <= 2 * 0.1 * 0.3 + 1e-6
    assert not torch.equal(twin[0].weight, model[0].weight)


def test_an_edit_of_one_gradient_reaches_the_optimizer():
    def freeze(grads):
        grads["0.weight"].zero_()

    model, _ = train(tg.Plan(accumulate=tg.Accumulate(K)), freeze)
    assert torch.equal(model[0].weight, net()[0].weight)
    assert not torch.equal(model[2].weight, net()[2].weight)


def test_it_is_called_once_a_step_with_the_sum_over_ranks():
    compress = tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback())
    plan = tg.Plan(accumulate=tg.Accumulate(K), compress=compress)

    def body(collective):
        seen = []
        model, _ = train(plan, lambda g: seen.append({n: t.clone() for n, t in g.items()}), collective=collective)
        return seen, [p.detach().clone() for p in model.parameters()]

    (first, weights), (second, others) = tg.collectives.run_threaded(2, body)
    assert len(first) == len(second) == 2
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert all(map(torch.equal, weights, others))


def test_an_empty_plan_calls_it_too():
    model, records = train(tg.Plan(), halved)
    assert records[0].grad_norm is not None
    assert not torch.equal(model[0].weight, net()[0].weight)


def replaced(grads):
    grads["0.weight"] = grads["0.weight"] * 2


def removed(grads):
    del grads["0.bias"]


def added(grads):
    grads["more"] = torch.zeros(1)


def returned(grads):
    return {name: grad * 2 for name, grad in grads.items()}


@pytest.mark.parametrize("edit", [lambda grads: {name: grad.norm() for name, grad in grads.items()}, len, dict])
def test_what_it_returns_besides_gradients_is_left_alone(edit):
    model, records = train(tg.Plan(accumulate=tg.Accumulate(K)), edit)
    plain, _ = train(tg.Plan(accumulate=tg.Accumulate(K)), None)
    assert len(records) == 2
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


@pytest.mark.parametrize("edit", [replaced, removed, added, returned])
def test_other_tensors_in_their_place_are_an_error(edit):
    with pytest.raises(tg.UsageError, match="change them in place"):
        train(tg.Plan(accumulate=tg.Accumulate(K)), edit)


@pytest.mark.parametrize("edit", [3, "halve", lambda: None, lambda a, b: None])
def test_what_cannot_be_called_with_the_gradients_is_refused(edit):
    with pytest.raises(tg.ConfigError, match="before_clip"):
        train(tg.Plan(), edit)


def test_an_edit_that_raises_keeps_no_gradient_alive():
    model, kept = net(), []

    def edit(grads):
        kept.append(weakref.ref(grads["0.weight"]))
        raise ValueError("no such parameter")

    plan = tg.Plan(accumulate=tg.Accumulate(K))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, before_clip=edit)
    gc.collect()
    gc.disable()
    try:
        for window in pipe.windows(data()):
            try:
                for inputs, target in window:
                    pipe.backward(F.mse_loss(model(inputs), target))
                pipe.step()
            except ValueError:
                pipe.abandon()
            assert kept[-1]() is None
    finally:
        gc.enable()
    assert len(kept) == 2
