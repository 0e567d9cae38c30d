"""Premises about model and optimizer: what does not hold is said once, by rank 0, or refused."""

import copy
import warnings

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.training import batches, linear, on_ranks, train

ACCUMULATES = [
    tg.Accumulate(micro_batches=2),
    tg.Accumulate(micro_batches=((0, 1), (100, 2))),
    tg.Accumulate(None, window_weight=8.0),
    tg.Accumulate(micro_batches=2, source="split"),
    tg.Accumulate(micro_batches=1, on_oom="split"),
]
LAYERS = [
    lambda: nn.BatchNorm1d(2),
    lambda: nn.SyncBatchNorm(2),
    lambda: nn.LazyBatchNorm1d(affine=False),
    lambda: nn.BatchNorm1d(2, track_running_stats=False).eval(),
    lambda: type("Mine", (nn.BatchNorm1d,), {})(2),
]


def with_layer(layer):
    return nn.Sequential(linear(), layer)


def attached(model, accumulate, **arguments):
    plan = tg.Plan(accumulate=accumulate, clip=tg.clip.GlobalNorm(1e9))
    return tg.attach(model, torch.optim.SGD([*model.parameters()], lr=0.1), plan, **arguments)


def said(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.category is tg.TightGradWarning for warning in caught)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


class TestBatchNorm:
    @pytest.mark.parametrize("make", LAYERS)
    def test_every_kind_of_it_is_named(self, make):
        (text,) = said(lambda: attached(with_layer(make()), ACCUMULATES[0]))
        assert text.startswith("BatchNorm in training mode (1: '1') normalises each micro-batch")
        assert "GroupNorm" in text

    @pytest.mark.parametrize("accumulate", ACCUMULATES)
    def test_whatever_makes_several_micro_batches(self, accumulate):
        assert len(said(lambda: attached(with_layer(LAYERS[0]()), accumulate))) == 1

    @pytest.mark.parametrize(
        ("make", "accumulate"),
        [
            (LAYERS[0], None),
            (LAYERS[0], tg.Accumulate(micro_batches=1)),
            (lambda: nn.BatchNorm1d(2).eval(), ACCUMULATES[0]),
            (lambda: nn.InstanceNorm1d(2), ACCUMULATES[0]),
            (lambda: nn.LayerNorm(2), ACCUMULATES[0]),
            (lambda: nn.GroupNorm(1, 2), ACCUMULATES[0]),
        ],
    )
    def test_nothing_is_said_where_the_gradient_is_that_of_the_big_batch(self, make, accumulate):
        assert said(lambda: attached(with_layer(make()), accumulate)) == []

    def test_one_that_trains_again_later_is_named_at_its_first_window_and_once(self):
        model = with_layer(nn.BatchNorm1d(2)).eval()
        pipe = attached(model, ACCUMULATES[0])
        train(pipe, model, batches(2))
        model.train()

        def trained():
            for window in pipe.windows(batches(4)):
                for batch in window:
                    pipe.backward(model(batch).square().mean())
                pipe.step()

        assert len(said(trained)) == 1

    def test_at_most_five_are_named(self):
        model = nn.Sequential(linear(), *(nn.BatchNorm1d(2) for _ in range(7)))
        (text,) = said(lambda: attached(model, ACCUMULATES[0]))
        assert "(7: '1', '2', '3', '4', '5' and 2 more)" in text

    def test_one_rank_speaks(self):
        texts = said(
            lambda: on_ranks(2, lambda c: attached(with_layer(nn.BatchNorm1d(2)), ACCUMULATES[0], collective=c) and 0)
        )
        assert len(texts) == 1


class Two(nn.Module):
    """Two layers in a row."""

    def __init__(self):
        super().__init__()
        self.first, self.second = linear(0), nn.Linear(2, 2)

    def forward(self, batch):
        return self.second(self.first(batch))


PLAN = tg.Plan(accumulate=tg.Accumulate(micro_batches=2), clip=tg.clip.GlobalNorm(1e9))
WARNS = pytest.mark.filterwarnings("ignore:.*not in the optimizer:tightgrad.TightGradWarning")


def half(model, lr=0.1):
    return torch.optim.SGD(model.second.parameters(), lr=lr)


class TestUnheldParameters:
    def test_they_are_named_with_what_follows(self):
        model = Two()
        (text,) = said(lambda: tg.attach(model, half(model), PLAN))
        assert "2 trainable parameters are not in the optimizer: 'first.weight', 'first.bias'" in text
        assert "never changes them. Their gradients are left out of the norm" in text
        assert "requires_grad_(False)" in text

    def test_one_is_one(self):
        model = linear()
        (text,) = said(lambda: tg.attach(model, torch.optim.SGD([model.weight], lr=0.1), PLAN))
        assert (
            "1 trainable parameter is not in the optimizer: 'bias'. pipe.step() never changes it. Its gradient is"
            in text
        )

    @pytest.mark.parametrize("freeze", [True, False])
    def test_frozen_and_tied_ones_are_no_matter(self, freeze):
        model = Two()
        if freeze:
            model.first.requires_grad_(False)
            optimizer = half(model)
        else:
            model.again = model.second
            optimizer = torch.optim.SGD([*model.first.parameters(), *model.second.parameters()], lr=0.1)
        assert said(lambda: tg.attach(model, optimizer, PLAN)) == []

    @WARNS
    @pytest.mark.parametrize("plan", [PLAN, tg.Plan(guard=tg.Guard())])
    def test_they_stay_out_of_the_norm_and_are_not_cleared(self, plan):
        model = Two()
        reference = copy.deepcopy(model)
        (record,) = train(tg.attach(model, half(model, lr=0.0), plan), model, data := batches(2 if plan is PLAN else 1))
        loss = sum((reference(b) - b[:, :2]).square().mean() for b in data) / len(data)
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in reference.second.parameters()]).norm()
        assert record.grad_norm == pytest.approx(float(norm), rel=1e-6)
        assert model.first.weight.grad is not None
        assert model.second.weight.grad is None

    @WARNS
    def test_they_stay_out_of_the_codec_and_the_residual(self):
        """And the ranks stay equal."""

        def body(collective):
            model = Two()
            torch.nn.init.ones_(model.second.weight)
            torch.nn.init.zeros_(model.second.bias)
            compress = tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback())
            pipe = tg.attach(model, half(model), tg.Plan(compress=compress), collective=collective)
            train(pipe, model, batches(2, collective.rank))
            return set(pipe.state.slots["residual"]), model.second.weight.detach().clone()

        (names, weight), (_, other) = on_ranks(2, body)
        assert names == {"second.weight", "second.bias"}
        assert torch.equal(weight, other)

    def test_an_optimizer_of_another_model_is_refused(self):
        model, other = linear(), linear()
        for plan in (tg.Plan(), PLAN):
            with pytest.raises(tg.UsageError, match=r"holds none of the model's 2 trainable parameters.*'weight'"):
                tg.attach(model, torch.optim.SGD(other.parameters(), lr=0.1), plan)
        with pytest.raises(tg.UsageError, match="holds none"):
            tg.attach(copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.1), PLAN)

    @WARNS
    def test_one_that_is_given_to_the_optimizer_later_is_an_error(self):
        model = Two()
        optimizer = half(model)
        pipe = tg.attach(model, optimizer, PLAN)
        optimizer.add_param_group({"params": list(model.first.parameters())})
        with pytest.raises(tg.UsageError, match=r"were not yet in the optimizer"):
            train(pipe, model, batches(2))


def test_a_plain_module_and_an_empty_plan_are_summed_over_ranks():
    def body(collective):
        model = linear()
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(), collective=collective)
        records = train(pipe, model, batches(3, collective.rank))
        return model.weight.detach().clone(), [record.wire_bytes for record in records]

    (mine, sent), (other, _) = on_ranks(2, body)
    reference = linear()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for pair in zip(batches(3, 0), batches(3, 1), strict=True):
        (sum((reference(b) - b[:, :2]).square().mean() for b in pair) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(mine, other)
    torch.testing.assert_close(mine, reference.weight.detach(), rtol=1e-6, atol=1e-7)
    assert all(sent)


def test_one_rank_keeps_the_empty_plan():
    model = linear()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan())
    assert pipe.plan.is_empty


def test_the_category_can_be_silenced_alone():
    assert issubclass(tg.TightGradWarning, UserWarning)
    with pytest.warns(tg.TightGradWarning, match="exhausted generator"):
        tg.clip_grad_norm_((p for p in ()), 1.0)
