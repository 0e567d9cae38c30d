"""What a pipeline remembers: copies out, checked in, and all or nothing."""

import copy

import pytest
import torch

import tightgrad as tg
from support.training import batches, linear, on_ranks, snapshot, train

CODEC = tg.codecs.TopK(0.3, values=tg.codecs.IntBlock(rounding="stochastic", block_size=8))
PLAN = tg.Plan(tg.Accumulate(2), tg.Compress(CODEC, feedback=tg.ErrorFeedback()), guard=tg.Guard("skip"))


def make(collective=None, plan=PLAN, seed=0):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, tg.attach(model, optimizer, plan, collective=collective, seed=seed)


def test_stopping_between_windows_and_resuming_is_bit_identical():
    def body(collective):
        loader = batches(8, collective.rank)
        model, optimizer, pipe = make(collective)
        expected = train(pipe, model, loader)

        first_model, first_optimizer, first = make(collective)
        train(first, first_model, loader[:4])
        saved = first.state_dict()
        second_model, second_optimizer, second = make(collective)
        second_model.load_state_dict(first_model.state_dict())
        second_optimizer.load_state_dict(copy.deepcopy(first_optimizer.state_dict()))
        second.load_state_dict(saved)
        records = train(second, second_model, loader[saved["num_consumed"] :])

        assert all(map(torch.equal, snapshot(second_model, second_optimizer), snapshot(model, optimizer)))
        assert [r.step for r in records] == [2, 3]
        assert [r.residual_norm for r in records] == [r.residual_norm for r in expected[2:]]
        assert [r.grad_norm for r in records] == [r.grad_norm for r in expected[2:]]

    assert on_ranks(2, body) == [None, None]


def test_the_state_is_a_copy():
    model, _, pipe = make()
    train(pipe, model, batches(4))
    state = pipe.state_dict()
    before = {name: tensor.clone() for name, tensor in state["slots"]["residual"].items()}
    train(pipe, model, batches(4, rank=5))
    for name, tensor in before.items():
        assert torch.equal(state["slots"]["residual"][name], tensor)
    pipe.load_state_dict(state)
    state["slots"]["residual"]["weight"].fill_(7.0)
    assert torch.equal(pipe.state_dict()["slots"]["residual"]["weight"], before["weight"])


def without(key):
    return lambda state: state.pop(key)


DAMAGED = {
    "version": (lambda s: s.update(version=99), "version 99 cannot be read"),
    "no version": (without("version"), "version None cannot be read"),
    "no step": (without("step"), "has no step; was it cut short"),
    "no slots": (without("slots"), "has no slots"),
    "unknown slot": (
        lambda s: s["slots"].update(velocity={}),
        "'velocity' was saved, but this plan remembers residual",
    ),
    "unknown parameter": (
        lambda s: s["slots"]["residual"].update(gone=torch.zeros(3)),
        "residual of 'gone' was saved, but the model has no trainable parameter",
    ),
    "wrong shape": (
        lambda s: s["slots"]["residual"].update(weight=torch.zeros(3, 2)),
        r"residual of 'weight' has shape \(3, 2\) and dtype torch.float32, the parameter has \(2, 3\)",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_state_that_does_not_fit_changes_nothing(name):
    damage, words = DAMAGED[name]
    model, _, pipe = make()
    train(pipe, model, batches(4))
    before = pipe.state_dict()
    other_model, _, other = make()
    train(other, other_model, batches(6, rank=3))
    state = other.state_dict()
    damage(state)
    with pytest.raises(tg.StateMismatchError, match=words):
        pipe.load_state_dict(state)
    after = pipe.state_dict()
    assert {key: after[key] for key in ("step", "consecutive_skips", "num_consumed")} == {
        key: before[key] for key in ("step", "consecutive_skips", "num_consumed")
    }
    for parameter, tensor in before["slots"]["residual"].items():
        assert torch.equal(after["slots"]["residual"][parameter], tensor)


def test_a_state_with_residuals_needs_a_plan_with_feedback():
    model, _, pipe = make()
    train(pipe, model, batches(2))
    _, _, other = make(plan=tg.Plan(clip=tg.clip.GlobalNorm(1.0)))
    with pytest.raises(tg.StateMismatchError, match="this plan remembers nothing; resume with the plan"):
        other.load_state_dict(pipe.state_dict())


def test_loading_in_mid_window_starts_clean():
    """Half a window's gradients are forgotten, not added to the next window."""
    model, optimizer, pipe = make()
    fresh = pipe.state_dict()
    for batch in next(pipe.windows(batches(2, rank=9))):
        pipe.backward(model(batch * 1e3).square().mean())
        break
    pipe.load_state_dict(fresh)
    train(pipe, model, batches(2))
    expected_model, expected_optimizer, expected = make()
    train(expected, expected_model, batches(2))
    assert all(map(torch.equal, snapshot(model, optimizer), snapshot(expected_model, expected_optimizer)))


def test_another_seed_draws_other_numbers():
    weights = []
    for seed in (0, 0, 1):
        model, _, pipe = make(seed=seed)
        train(pipe, model, batches(24))
        weights.append(model.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("fetch", ["batch", "window"])
@pytest.mark.parametrize("now", [3, 5])
def test_another_number_of_micro_batches_in_mid_window_is_named(fetch, now):
    model, _, pipe = make(plan=tg.Plan(accumulate=tg.Accumulate(4, fetch=fetch)))
    _, _, other = make(plan=tg.Plan(accumulate=tg.Accumulate(now, fetch=fetch)))
    for _, batch in zip(range(2), next(pipe.windows(batches(8))), strict=False):
        pipe.backward(model(batch).square().mean())
        state = pipe.state_dict()
    other.load_state_dict(state)
    with pytest.raises(tg.StateMismatchError, match=rf"now one of {now} micro-batches.*Go on with the micro_batches"):
        next(other.windows(batches(8)))
