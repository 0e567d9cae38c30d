"""ReduceLROnPlateau is given the window's loss over all ranks: every rank lowers its rate at the same step."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import tightgrad as tg
from support.closing import strong_wolfe
from support.training import on_ranks


class Noted(ReduceLROnPlateau):
    """Remembers what it was given."""

    def __init__(self, optimizer):
        super().__init__(optimizer, patience=0, threshold=0.0, factor=0.5)
        self.seen = []

    def step(self, metrics, epoch=None):
        self.seen.append(metrics)
        super().step(metrics)


def data(rank=0, sizes=(4, 2, 5, 3, 1, 4)):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(n, 3, generator=generator).double() for n in sizes]


torch.manual_seed(0)
START = nn.Linear(3, 2).double()


def model():
    return copy.deepcopy(START)  # threads of ranks share the generator that torch.manual_seed sets


def loss_of(net, batch):
    return (net(batch) - batch[:, :2]).square().mean()


def train(net, pipe, loader, skipped=()):
    records, at = [], 0
    for window in pipe.windows(loader):
        for batch in window:
            if at in skipped:
                pipe.skip()
            else:
                pipe.backward(loss_of(net, batch))
            at += 1
        records.append(pipe.step())
    return records


def by_hand(windows):
    """Losses, rate and weights of a loop with a big batch for each step, whose loss the scheduler is given."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scheduler = Noted(optimizer)
    for batches in windows:
        net.zero_grad()
        loss = loss_of(net, torch.cat(batches))
        loss.backward()
        optimizer.step()
        scheduler.step(loss.item())
    return scheduler.seen, optimizer.param_groups[0]["lr"], net.weight.detach()


def windows(size, left_out=()):
    kept = [[batch for at, batch in enumerate(data()) if at // size == w and at not in left_out] for w in range(6)]
    return list(filter(None, kept))


@pytest.mark.parametrize("fetch", ["auto", "window"])
@pytest.mark.parametrize("scale", [None, tg.LossScale(initial=8.0)])
def test_it_gets_the_mean_over_all_samples_of_the_window(fetch, scale):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scheduler = Noted(optimizer)
    plan = tg.Plan(accumulate=tg.Accumulate(2, fetch=fetch), loss_scale=scale)
    records = train(net, tg.attach(net, optimizer, plan, scheduler=scheduler), data())
    seen, rate, weight = by_hand(windows(2))
    assert scheduler.seen == pytest.approx(seen)
    assert scheduler.seen == pytest.approx([record.loss for record in records])
    assert optimizer.param_groups[0]["lr"] == rate < 0.5
    torch.testing.assert_close(net.weight.detach(), weight)


def test_with_a_micro_batch_left_out():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scheduler = Noted(optimizer)
    train(net, tg.attach(net, optimizer, tg.Plan(accumulate=tg.Accumulate(3)), scheduler=scheduler), data(), (1, 5))
    assert scheduler.seen == pytest.approx(by_hand(windows(3, left_out=(1, 5)))[0])


def test_under_the_empty_plan():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scheduler = Noted(optimizer)
    train(net, tg.attach(net, optimizer, tg.Plan(), scheduler=scheduler), data())
    assert scheduler.seen == pytest.approx(by_hand(windows(1))[0])


def test_ranks_lower_the_rate_together():
    sizes = ((4, 2, 5, 3, 1, 4), (1, 4, 4, 2))  # the second rank ends first

    def body(collective):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        scheduler = Noted(optimizer)
        plan = tg.Plan(accumulate=tg.Accumulate(2))
        pipe = tg.attach(net, optimizer, plan, scheduler=scheduler, collective=collective)
        records = train(net, pipe, data(collective.rank, sizes[collective.rank]))
        return scheduler.seen, optimizer.param_groups[0]["lr"], [record.loss for record in records]

    found = on_ranks(2, body)
    assert found[0][:2] == found[1][:2]
    assert found[0][2] != found[1][2], "a record has its own rank's loss"
    whole = [[b for rank in range(2) for b in data(rank, sizes[rank])[at : at + 2]] for at in (0, 2, 4)]
    assert found[0][0] == pytest.approx(by_hand(whole)[0])


def test_a_step_that_is_skipped_and_a_flush_tell_it_nothing():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    scheduler = Noted(optimizer)
    plan = tg.Plan(accumulate=tg.Accumulate(2), guard=tg.Guard("skip"))
    pipe = tg.attach(net, optimizer, plan, scheduler=scheduler)
    poisoned = data()
    poisoned[3] = poisoned[3] * math.nan
    assert [record.skipped for record in train(net, pipe, poisoned)] == [False, True, False]
    assert len(scheduler.seen) == 2
    feedback = tg.Compress(tg.codecs.TopK(density=0.5), feedback=tg.ErrorFeedback())
    other = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    scheduler = Noted(optimizer)
    pipe = tg.attach(other, optimizer, tg.Plan(compress=feedback), scheduler=scheduler)
    train(other, pipe, [torch.ones(4, 3)])
    pipe.flush()
    assert len(scheduler.seen) == 1


def test_with_cached_representations_it_gets_the_loss_of_all():
    def infonce(representations):
        first, second = representations
        return nn.functional.cross_entropy(first @ second.T, torch.arange(len(first)))

    def body(collective):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        scheduler = Noted(optimizer)
        plan = tg.Plan(accumulate=tg.Accumulate(3))
        pipe = tg.attach(net, optimizer, plan, scheduler=scheduler, collective=collective)
        for window in pipe.windows(data(collective.rank)[:3]):
            pipe.run_cached(window, lambda batch: (net(batch), net(batch + 0.1)), infonce)
        return scheduler.seen

    whole = torch.cat([*data(0)[:3], *data(1)[:3]])
    expected = infonce((model()(whole), model()(whole + 0.1))).item()
    assert on_ranks(2, body) == [pytest.approx([expected])] * 2


def test_one_of_several_schedulers_and_the_loss_of_a_closure():
    net = model()
    optimizers = [torch.optim.SGD([net.weight], lr=0.5), torch.optim.SGD([net.bias], lr=0.5)]
    both = [Noted(optimizers[0]), StepLR(optimizers[1], 1, gamma=0.5)]
    train(net, tg.attach(net, optimizers, tg.Plan(accumulate=tg.Accumulate(3)), scheduler=both), data())
    assert len(both[0].seen) == 2
    assert optimizers[1].param_groups[0]["lr"] == 0.125
    net = model()
    optimizer = strong_wolfe(net.parameters())
    scheduler = Noted(optimizer)
    pipe = tg.attach(net, optimizer, tg.Plan(accumulate=tg.Accumulate(3)), scheduler=scheduler)
    records = [pipe.run(window, lambda batch: loss_of(net, batch)) for window in pipe.windows(data())]
    assert scheduler.seen == pytest.approx([record.loss for record in records])


class Written:
    """Keeps the records."""

    def __init__(self):
        self.records = []

    def start(self, rank, world_size, plan):
        pass

    def write(self, record):
        self.records.append(record)

    def failed(self, error):
        pass

    def close(self):
        pass


class Broken(StepLR):
    def step(self, epoch=None):
        if self.last_epoch >= 1:
            raise KeyError("rate")
        super().step()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=1),
            r"^OneCycleLR.step\(\) .*has been applied: .*total_steps=1",
        ),
        (lambda optimizer: Broken(optimizer, 5), r"^Broken.step\(\) raised KeyError.* has been applied: "),
    ],
)
@pytest.mark.parametrize("plan", [tg.Plan(), tg.Plan(guard=tg.Guard())], ids=["empty", "guarded"])
def test_a_scheduler_that_raises_is_named_and_the_step_is_said_to_be_applied(make, told, plan):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    written = Written()
    pipe = tg.attach(net, optimizer, plan, scheduler=make(optimizer), records=[written])
    train(net, pipe, data()[:1])
    before = net.weight.detach().clone()
    with pytest.raises(tg.ConfigError, match=told):
        train(net, pipe, data()[1:2])
    assert pipe.state.step == 2
    assert not torch.equal(net.weight, before)
    assert [record["step"] for record in written.records] == [0, 1]


@pytest.mark.parametrize(
    ("steps_too", "told"),
    [(lambda scheduler: scheduler.step(), 1), (lambda scheduler: scheduler.load_state_dict(scheduler.state_dict()), 0)],
)
def test_a_scheduler_that_the_loop_steps_as_well_is_told_once(steps_too, told):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1)
    pipe = tg.attach(net, optimizer, tg.Plan(tg.Accumulate(1)), scheduler=scheduler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(4):
            train(net, pipe, data()[number : number + 1])
            steps_too(scheduler)
    words = [str(one.message) for one in caught if "the schedule runs twice as fast" in str(one.message)]
    assert len(words) == told
    assert all("called step() on StepLR" in text for text in words)
