"""Inf and NaN: every rank agrees, says where, and a skipped step has not happened."""

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.training import batches, linear, loss_of, on_ranks, snapshot, train

COMPRESS = tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback())
SKIP = tg.Guard("skip", max_consecutive_skips=3)


def make(collective, guard=SKIP, compress=COMPRESS):
    model = linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    plan = tg.Plan(accumulate=tg.Accumulate(1), compress=compress, clip=tg.clip.GlobalNorm(0.5), guard=guard)
    return model, optimizer, tg.attach(model, optimizer, plan, collective=collective)


def poisoned(loader, position, value):
    loader = [batch.clone() for batch in loader]
    loader[position][0, 0] = value
    return loader


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_raise_names_the_parameter_and_the_rank_on_every_rank(value):
    def body(collective):
        model, _, pipe = make(collective, tg.Guard("raise"))
        loader = batches(1, collective.rank)
        return train(pipe, model, poisoned(loader, 0, value) if collective.rank == 2 else loader)

    for error in on_ranks(3, body):
        assert isinstance(error, tg.NonFiniteGradientError)
        assert "weight (6 entries on rank 2)" in str(error) or "weight (4 entries on rank 2)" in str(error)
        assert 'Guard(on_nonfinite="skip")' in str(error)


def test_raise_leaves_everything_as_it_was():
    def body(collective):
        model, optimizer, pipe = make(collective, tg.Guard("raise"))
        train(pipe, model, batches(2, collective.rank))
        before, state = snapshot(model, optimizer), pipe.state_dict()
        with pytest.raises(tg.NonFiniteGradientError):
            train(pipe, model, poisoned(batches(1), 0, float("nan")))
        assert all(map(torch.equal, snapshot(model, optimizer), before))
        assert pipe.state_dict()["step"] == state["step"] == 2
        (record,) = train(pipe, model, batches(1, collective.rank))
        assert not record.skipped, "the pipeline goes on after the error"

    for result in on_ranks(2, body):
        assert result is None


def same(first, second):
    return all(
        torch.equal(first["slots"]["residual"][name], tensor) for name, tensor in second["slots"]["residual"].items()
    )


def test_a_skipped_step_has_not_happened():
    """One rank's NaN: weights, optimizer, residuals and later randomness are those of a run without the window."""

    def run(collective, with_poison):
        model, optimizer, pipe = make(collective)
        loader = batches(4, collective.rank)
        train(pipe, model, loader[:2])
        if with_poison:
            before, state = snapshot(model, optimizer), pipe.state_dict()
            bad = batches(1, 77)
            (record,) = train(pipe, model, poisoned(bad, 0, float("nan")) if collective.rank == 1 else bad)
            assert record.skipped
            assert record.skip_reason == "nonfinite"
            assert record.step == 2
            assert all(map(torch.equal, snapshot(model, optimizer), before))
            assert same(pipe.state_dict(), state)
            assert all(parameter.grad is None for parameter in model.parameters())
        train(pipe, model, loader[2:])
        return snapshot(model, optimizer), pipe.state_dict()

    with_poison = on_ranks(2, lambda collective: run(collective, True))
    without = on_ranks(2, lambda collective: run(collective, False))
    for (tensors, state), (expected, expected_state) in zip(with_poison, without, strict=True):
        assert all(map(torch.equal, tensors, expected))
        assert same(state, expected_state)
        assert state["step"] == expected_state["step"] == 4


def test_too_many_skips_in_a_row_raise_and_a_good_step_resets_the_count():
    def body(collective):
        model, _, pipe = make(collective)
        good, bad = batches(1), poisoned(batches(1), 0, float("inf"))
        for _ in range(2):
            records = train(pipe, model, bad + bad + good)
            assert [record.skipped for record in records] == [True, True, False]
        return train(pipe, model, bad * 3)

    for error in on_ranks(2, body):
        assert isinstance(error, tg.NonFiniteGradientError)
        assert str(error).startswith("3 steps in a row are not finite (the limit)")


def test_an_overflow_on_the_wire_is_seen():
    """Finite gradients that float16 cannot carry."""

    def body(collective):
        model, optimizer, pipe = make(collective, SKIP, tg.Compress(tg.codecs.Cast("float16")))
        before = snapshot(model, optimizer)
        (record,) = train(pipe, model, [batch * 1e4 for batch in batches(1, collective.rank)])
        assert record.skip_reason == "nonfinite"
        assert all(map(torch.equal, snapshot(model, optimizer), before))

    assert on_ranks(2, body) == [None, None]


def steps_of(size: float, dtype: torch.dtype, plan: tg.Plan) -> tg.StepRecord:
    model = nn.Linear(1, 4, bias=False, dtype=dtype)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    for window in pipe.windows([torch.full((1, 1), size, dtype=dtype)]):
        for batch in window:
            pipe.backward(model(batch).sum())
        record = pipe.step()
    return record


def test_finite_gradients_whose_norm_is_not_say_so():
    """Of float32 gradients every norm is a float64 number, but codecs work in float32."""
    clip = tg.clip.GlobalNorm(1.0)
    assert steps_of(3e38, torch.float32, tg.Plan(clip=clip)).grad_norm == pytest.approx(6e38)
    with pytest.raises(tg.NonFiniteGradientError, match=r"finite but their norm is above .* 1\.8e308"):
        steps_of(1.7e308, torch.float64, tg.Plan(clip=clip))
    for codec in (tg.codecs.TernGrad(), tg.codecs.TopK(0.5)):
        plan = tg.Plan(compress=tg.Compress(codec), clip=clip)
        with pytest.raises(tg.NonFiniteGradientError, match=r"finite but their norm is above .* 3\.4e38"):
            steps_of(3e38, torch.float32, plan)


def test_a_window_without_weight_is_skipped_and_is_no_error():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = tg.Plan(accumulate=tg.Accumulate(2))
    pipe = tg.attach(model, optimizer, plan, weight=lambda batch: 0)
    before = snapshot(model, optimizer)
    for window in pipe.windows(batches(2)):
        for batch in window:
            pipe.backward(loss_of(model, batch) * float("nan"))
        record = pipe.step()
    assert (record.skipped, record.skip_reason, record.weight) == (True, "zero_weight", 0.0)
    assert all(map(torch.equal, snapshot(model, optimizer), before))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"on_nonfinite": "ignore"}, "'raise', 'skip'"), ({"max_consecutive_skips": 0}, "at least 1")],
)
def test_settings_out_of_bounds(arguments, words):
    with pytest.raises(tg.ConfigError, match=words):
        tg.Guard(**arguments)
