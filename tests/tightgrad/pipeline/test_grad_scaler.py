"""A torch GradScaler: loss scaled, gradient unscaled once before codec and clip, S by the rule of torch."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

import tightgrad as tg
from support.training import batches, linear, loss_of, on_ranks, train

K = 2


def scaler(**settings):
    return GradScaler("cpu", **{"init_scale": 1024.0, "growth_interval": 3, **settings})


def plan(**parts):
    return tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(0.05, compat="torch"), **parts)


def with_overflow(loader, position):
    """One micro-batch whose squared error overflows once it is scaled, but not before."""
    loader = [batch.clone() for batch in loader]
    loader[position] *= 1e18
    return loader


def autocast_loss(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)
    return (output.float() - batch[:, :2]).square().mean()


def torch_loop(loader):
    """As in torch's guide to gradient accumulation and clipping with a scaler."""
    model, own = linear(), scaler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scales, norms = [], []
    for start in range(0, len(loader), K):
        for batch in loader[start : start + K]:
            own.scale(autocast_loss(model, batch) / K).backward()
        own.unscale_(optimizer)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
        own.step(optimizer)
        own.update()
        optimizer.zero_grad()
        scales.append((own.get_scale(), own.state_dict()["_growth_tracker"]))
    return model, scales, norms


def test_the_pipeline_is_torchs_loop_with_autocast_overflow_and_growth():
    loader = with_overflow(batches(16), 9)
    theirs, their_scales, their_norms = torch_loop(loader)
    model, own = linear(), scaler()
    pipe = tg.attach(model, torch.optim.AdamW(model.parameters(), lr=0.01), plan(), scaler=own)
    scales, records = [], []
    for window in pipe.windows(loader):
        for batch in window:
            pipe.backward(autocast_loss(model, batch))
        records.append(pipe.step())
        scales.append((own.get_scale(), own.state_dict()["_growth_tracker"]))
    assert scales == their_scales
    assert [scale for scale, _ in scales] == [1024, 1024, 2048, 2048, 1024, 1024, 1024, 2048]
    assert [record.skip_reason for record in records] == [None] * 4 + ["nonfinite"] + [None] * 3
    assert [record.loss_scale for record in records] == [1024, 1024, 1024, 2048, 2048, 1024, 1024, 1024]
    for record, norm in zip(records, their_norms, strict=True):
        assert record.skipped or record.grad_norm == pytest.approx(norm, rel=1e-6)
    for ours, other in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours, other, rtol=1e-6, atol=0)


def trained(collective, own, first=0):
    model = linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    compress = tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback())
    pipe = tg.attach(model, optimizer, plan(compress=compress), collective=collective, scaler=own)
    records = train(pipe, model, batches(8, collective.rank)[first:])
    return [p.detach() for p in model.parameters()], pipe.state_dict()["slots"]["residual"], records


def test_codec_residual_and_clip_see_the_unscaled_gradient():
    """S is a power of two, so every bit must be as without a scaler."""
    plain = on_ranks(2, lambda collective: trained(collective, None))
    scaled = on_ranks(2, lambda collective: trained(collective, scaler()))
    for (weights, residual, records), (own_weights, own_residual, own_records) in zip(plain, scaled, strict=True):
        assert all(map(torch.equal, weights, own_weights))
        assert all(torch.equal(own_residual[name], tensor) for name, tensor in residual.items())
        assert [r.grad_norm for r in records] == [r.grad_norm for r in own_records]
        assert [r.loss_scale for r in own_records] == [1024, 1024, 1024, 2048]


def test_an_overflow_on_one_rank_shrinks_the_scale_of_all():
    def body(collective):
        model, own = linear(), scaler()
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(), collective=collective, scaler=own)
        loader = batches(4, collective.rank)
        train(pipe, model, with_overflow(loader, 1) if collective.rank == 1 else loader)
        return own.get_scale(), [p.detach() for p in model.parameters()]

    (scale, weights), *others = on_ranks(3, body)
    assert scale == 512
    for other, other_weights in others:
        assert other == scale
        assert all(map(torch.equal, weights, other_weights))


def test_an_empty_plan_with_a_scaler_is_torchs_loop():
    model, theirs, own, their_scaler = linear(), linear(), scaler(), scaler()
    loader = with_overflow(batches(5), 2)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for batch in loader:
        their_scaler.scale(loss_of(theirs, batch)).backward()
        their_scaler.step(optimizer)
        their_scaler.update()
        optimizer.zero_grad()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(), scaler=own)
    records = train(pipe, model, loader)
    assert [record.skipped for record in records] == [False, False, True, False, False]
    assert own.state_dict() == their_scaler.state_dict()
    assert all(map(torch.equal, model.parameters(), theirs.parameters()))


def test_a_disabled_scaler_is_none():
    model = linear()
    pipe = tg.attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(), scaler=GradScaler("cpu", enabled=False)
    )
    assert pipe.plan.is_empty
    (record,) = train(pipe, model, batches(1))
    assert record.loss_scale is None


def test_a_scale_that_helps_nothing_is_an_error_and_not_a_skip_for_ever():
    model, own = linear(), scaler(init_scale=2.0**-13)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(), scaler=own)
    loader = [batch * torch.inf for batch in batches(6)]
    with pytest.raises(tg.NonFiniteGradientError, match="not the scale that overflows"):
        train(pipe, model, loader)
    assert own.get_scale() == 2.0**-14


@pytest.mark.parametrize(
    ("parts", "given", "words"),
    [
        ({"loss_scale": tg.LossScale()}, scaler(), "scaled twice"),
        ({"guard": tg.Guard("zero")}, scaler(), "hides"),
        ({"guard": tg.Guard("propagate")}, scaler(), "hides"),
        ({}, 1024.0, r"scaler=1024\.0 must be a torch\.amp\.GradScaler"),
    ],
)
def test_what_does_not_go_together_is_refused(parts, given, words):
    model = linear()
    with pytest.raises((tg.ConfigError, tg.IncompatiblePlanError), match=words):
        tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(**parts), scaler=given)


def test_ranks_with_different_scales_do_not_begin():
    def body(collective):
        model = linear()
        own = scaler(init_scale=1024.0 if collective.rank else 512.0)
        return tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(), collective=collective, scaler=own)

    for error in on_ranks(2, body):
        assert isinstance(error, tg.RankMismatchError)
        assert "loss scale differ on rank 1" in str(error)


def half_a_window(own):
    model = linear()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(), scaler=own)
    for batch in next(pipe.windows(batches(2))):
        pipe.backward(loss_of(model, batch))
        return model, pipe.state_dict()
    return None


def test_in_mid_window_the_scaler_has_to_be_restored_as_well():
    straight, state = half_a_window(scaler())
    for own, fits in ((scaler(init_scale=256.0), False), (scaler(), True)):
        model = linear()
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(), scaler=own)
        pipe.load_state_dict(state)
        if fits:
            (record,) = train(pipe, model, batches(2))
            assert not record.skipped
        else:
            with pytest.raises(tg.StateMismatchError, match=r"loss scale of 1024\.0.*now 256\.0.*restore"):
                next(pipe.windows(batches(2)))
    assert straight is not model


@pytest.mark.parametrize("name", ["scale", "unscale_", "step", "update"])
def test_a_call_left_over_from_the_loop_before_is_an_error_until_the_pipeline_is_closed(name):
    model, own = linear(), scaler()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, plan(), scaler=own)
    given = {"scale": [model(batches(1)[0]).sum()], "unscale_": [optimizer], "step": [optimizer], "update": []}
    for window in pipe.windows(batches(K)):
        for batch in window:
            pipe.backward(loss_of(model, batch))
            with pytest.raises(tg.UsageError, match=rf"scaler\.{name}\(\) was called"):
                getattr(own, name)(*given[name])
        pipe.step()
    pipe.close()
    own.scale(loss_of(model, batches(1)[0])).backward()
    own.step(optimizer)
    own.update()


def test_a_scaler_of_two_pipelines_is_guarded_until_both_are_closed():
    own = scaler()
    first, second = (
        tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(), scaler=own)
        for model in (linear(), linear())
    )
    second.close()
    with pytest.raises(tg.UsageError, match="drop the call"):
        own.update()
    first.close()
    assert own.scale(torch.ones(())) == 1024.0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_a_copy_of_a_driven_scaler_is_a_free_one_in_the_same_state(copied):
    model, own = linear(), scaler()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(), scaler=own)
    free = copied(own)
    assert type(free) is GradScaler
    assert free.state_dict() == own.state_dict()
    assert free.scale(torch.ones(())) == 1024.0
    assert pipe.ownership.is_held


class Counting(GradScaler):
    """A scaler of the user's own class, whose methods still count once the pipeline is gone."""

    updates = 0

    def update(self, new_scale=None):
        self.updates += 1


def test_a_scaler_of_a_class_of_ones_own_gets_its_methods_back():
    model, own = linear(), Counting("cpu")
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(), scaler=own)
    assert isinstance(own, Counting)
    with pytest.raises(tg.UsageError, match="update"):
        own.update()
    pipe.close()
    own.update()
    assert own.updates == 1


@pytest.mark.parametrize(
    "scaled",
    [
        lambda own, loss: own.scale(loss / K),
        lambda own, loss: own.scale(loss) / K,
        lambda own, loss: own.scale(loss) + own.scale(loss),
    ],
)
def test_a_loss_scaled_by_a_scaler_that_attach_was_not_given_is_an_error(scaled):
    model, own = linear(), scaler()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan())
    window = next(iter(pipe.windows(batches(K))))
    with pytest.raises(tg.UsageError, match=r"a GradScaler's scale, 1024, .*attach\(..., scaler=scaler\)"):
        pipe.backward(scaled(own, loss_of(model, next(iter(window)))))
    pipe.abandon()


@pytest.mark.parametrize("factor", [2.0, torch.tensor(1024.0), torch.nn.Parameter(torch.tensor(3.0))])
def test_a_loss_times_a_factor_of_ones_own_is_none(factor):
    model, own = linear(), scaler()
    own.scale(torch.ones(()))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan())
    for window in pipe.windows(batches(K)):
        for batch in window:
            pipe.backward(loss_of(model, batch) * factor)
        pipe.step()
    assert pipe.state.step == 1
