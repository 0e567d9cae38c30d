"""A micro-batch that is taken out of its window: the step is that of a window without it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg

K = 4
PLANS = {
    "mean": tg.Plan(accumulate=tg.Accumulate(K)),
    "sum": tg.Plan(accumulate=tg.Accumulate(K, loss_reduction="sum")),
    "one at a time": tg.Plan(accumulate=tg.Accumulate(K, fetch="batch")),
    "clip": tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(0.01)),
    "compress": tg.Plan(
        accumulate=tg.Accumulate(K), compress=tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback())
    ),
    "loss scale": tg.Plan(accumulate=tg.Accumulate(K), loss_scale=tg.LossScale(initial=8.0)),
}


def start():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


START = start()


def net(dtype=torch.float32):
    """The same weights on every call, also from several threads."""
    return copy.deepcopy(START).to(dtype)


def data(count=2 * K, rank=0):
    generator = torch.Generator().manual_seed(rank)
    sizes = [2 + (number + rank) % 3 for number in range(count)]
    return [(torch.randn(n, 6, generator=generator), torch.randn(n, 3, generator=generator)) for n in sizes]


class Seen(torch.optim.SGD):
    def step(self, closure=None):
        self.seen = torch.cat([p.grad.double().flatten() for group in self.param_groups for p in group["params"]])
        super().step()


def loss_of(model, batch, plan):
    reduction = plan.accumulate.loss_reduction
    return F.mse_loss(model(batch[0]), batch[1], reduction=reduction)


def train(plan, batches, bad, *, collective=None, nan=True):
    model = net()
    optimizer = Seen(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, plan, collective=collective)
    records, number = [], 0
    for window in pipe.windows(batches):
        for batch in window:
            loss = loss_of(model, batch, plan)
            if number in bad:
                pipe.skip(loss * torch.nan) if nan else pipe.skip()
            else:
                pipe.backward(loss)
            number += 1
        records.append(pipe.step())
    return model, optimizer, records


@pytest.mark.parametrize("nan", [True, False])
@pytest.mark.parametrize("bad", [[0], [1], [K - 1], [0, 2], [1, 2, 3]], ids=str)
@pytest.mark.parametrize("plan", [name for name in PLANS if name != "compress"])
def test_the_gradient_is_that_of_the_others_in_float64(plan, bad, nan):
    _, optimizer, (record,) = train(PLANS[plan], data(K), bad, nan=nan)
    target = net(torch.float64)
    kept = [batch for number, batch in enumerate(data(K)) if number not in bad]
    inputs, labels = (torch.cat(parts).double() for parts in zip(*kept, strict=True))
    if PLANS[plan].accumulate.loss_reduction == "mean":
        F.mse_loss(target(inputs), labels).backward()
    else:
        (F.mse_loss(target(inputs), labels, reduction="sum") / len(inputs)).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in target.parameters()]) * (record.clip_coef or 1.0)
    assert float((optimizer.seen - expected).norm() / expected.norm()) < 1e-6
    assert record.weight == sum(len(inputs) for inputs, _ in kept)


def test_what_feedback_remembers_is_that_of_the_others():
    batches, bad = data(), [1, K + 2]
    model, *_ = train(PLANS["compress"], batches, bad)
    twin = net()
    weights = {id(batch[0]): 0.0 if number in bad else float(len(batch[0])) for number, batch in enumerate(batches)}
    pipe = tg.attach(
        twin, Seen(twin.parameters(), lr=0.1), PLANS["compress"], weight=lambda batch: weights[id(batch[0])]
    )
    for window in pipe.windows(batches):
        for batch in window:
            pipe.backward(loss_of(twin, batch, PLANS["compress"]))
        pipe.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("plan", PLANS)
def test_a_window_of_which_nothing_is_left_is_no_step(plan):
    model, _, records = train(PLANS[plan], data(K), range(K))
    assert records[0].skip_reason == "zero_weight"
    assert records[0].weight == 0.0
    assert all(map(torch.equal, model.parameters(), net().parameters()))


@pytest.mark.parametrize("plan", ["mean", "compress", "one at a time"])
@pytest.mark.parametrize("bad", [{0: [1]}, {0: [0], 1: [3]}, {1: [0, 1, 2, 3]}], ids=str)
def test_ranks_tell_each_other_what_they_left_out(plan, bad):
    plan = tg.Plan.from_config(PLANS[plan].to_config())
    accumulate = tg.Accumulate(K, fetch=plan.accumulate.fetch, allow_skip=True)
    plan = tg.Plan(accumulate=accumulate, compress=plan.compress and tg.Compress(tg.codecs.Cast("float32")))

    def body(collective):
        mine = bad.get(collective.rank, [])
        _, optimizer, (record,) = train(plan, data(K, collective.rank), mine, collective=collective)
        return optimizer.seen, record.weight

    results = tg.collectives.run_threaded(2, body)
    kept = [b for rank in range(2) for n, b in enumerate(data(K, rank)) if n not in bad.get(rank, [])]
    target = net(torch.float64)
    inputs, labels = (torch.cat(parts).double() for parts in zip(*kept, strict=True))
    F.mse_loss(target(inputs), labels).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in target.parameters()])
    for seen, weight in results:
        assert float((seen - expected).norm() / expected.norm()) < 1e-6
        assert weight == len(inputs)


def test_a_run_that_is_resumed_in_the_middle_of_such_a_window_is_the_same():
    plan, batches = PLANS["mean"], data(K)
    whole, *_ = train(plan, batches, [1])
    model = net()
    pipe = tg.attach(model, Seen(model.parameters(), lr=0.1), plan)
    window = next(iter(pipe.windows(batches)))
    for number, batch in enumerate(window):
        if number == 1:
            pipe.skip()
            saved = copy.deepcopy(pipe.state_dict())
            break
        pipe.backward(loss_of(model, batch, plan))
    pipe.abandon()
    again = net()
    pipe = tg.attach(again, Seen(again.parameters(), lr=0.1), plan)
    pipe.load_state_dict(saved)
    for window in pipe.windows(batches):
        for batch in window:
            pipe.backward(loss_of(again, batch, plan))
        pipe.step()
    assert all(map(torch.equal, again.parameters(), whole.parameters()))


class TestRefusals:
    def test_an_empty_plan(self):
        model = net()
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan())
        next(iter(next(iter(pipe.windows(data(1))))))
        with pytest.raises(tg.UnsupportedError, match="micro_batches=1"):
            pipe.skip()

    def test_several_ranks_that_have_not_agreed_to(self):
        def body(collective):
            with pytest.raises(tg.UnsupportedError, match="allow_skip=True"):
                train(PLANS["mean"], data(K), [0], collective=collective)

        tg.collectives.run_threaded(2, body)

    def test_several_losses(self):
        model = net()
        plan = tg.Plan(accumulate=tg.Accumulate(2, losses=("a", "b")))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pipe = tg.attach(model, optimizer, plan, weight=lambda batch: {"a": 1.0, "b": 2.0})
        window = next(iter(pipe.windows(data(2))))
        next(iter(window))
        with pytest.raises(tg.UnsupportedError, match="no one N"):
            pipe.skip()

    @pytest.mark.parametrize("first", ["skip", "backward"])
    @pytest.mark.parametrize("second", ["skip", "backward"])
    def test_twice_for_one_micro_batch(self, first, second):
        model = net()
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLANS["mean"])
        window = next(iter(pipe.windows(data(K))))
        batch = next(iter(window))

        def call(name):
            loss = loss_of(model, batch, PLANS["mean"])
            pipe.skip(loss) if name == "skip" else pipe.backward(loss)

        call(first)
        with pytest.raises(tg.UsageError, match="ran twice for micro-batch 0"):
            call(second)

    @pytest.mark.parametrize("bad", [1, "yes", None])
    def test_allow_skip_is_true_or_false(self, bad):
        if bad == 1:
            assert tg.Accumulate(2, allow_skip=True).allow_skip
            return
        with pytest.raises(tg.ConfigError, match="allow_skip"):
            tg.Accumulate(2, allow_skip=bad)
