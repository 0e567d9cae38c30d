"""A window that one rank alone leaves: the others are told at their step, and all go on together."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg

K, WORLD = 2, 3
COMPRESS = tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback())
torch.manual_seed(0)
START = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
PLANS = {
    "dense": tg.Plan(accumulate=tg.Accumulate(K)),
    "skips": tg.Plan(accumulate=tg.Accumulate(K, allow_skip=True)),
    "compress": tg.Plan(accumulate=tg.Accumulate(K), compress=COMPRESS),
}


def data(rank):
    generator = torch.Generator().manual_seed(rank)
    return [(torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)) for _ in range(3 * K)]


def attached(plan, collective=None):
    model = copy.deepcopy(START)
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)


def train(collective, plan, leaves_at=None, rank=1):
    model, pipe = attached(plan, collective)
    told = []
    for number, window in enumerate(pipe.windows(data(collective.rank))):
        for position, (inputs, target) in enumerate(window):
            pipe.backward(F.mse_loss(model(inputs), target))
            if number == leaves_at and collective.rank == rank and position == 0:
                pipe.leave()
                break
        else:
            try:
                pipe.step()
            except tg.UsageError as error:
                told.append(str(error))
    return [parameter.detach().clone() for parameter in model.parameters()], told


@pytest.mark.parametrize("plan", PLANS)
def test_the_others_are_told_and_all_go_on(plan):
    results = tg.collectives.run_threaded(WORLD, lambda collective: train(collective, PLANS[plan], leaves_at=1))
    for rank, (weights, told) in enumerate(results):
        assert all(map(torch.equal, weights, results[0][0]))
        assert len(told) == (rank != 1)
        assert all("another rank has failed before this step" in text for text in told)
    whole = tg.collectives.run_threaded(WORLD, lambda collective: train(collective, PLANS[plan]))
    assert not torch.equal(whole[0][0][0], results[0][0][0])


def test_alone_it_drops_the_window():
    model, pipe = attached(PLANS["dense"])
    for number, window in enumerate(pipe.windows(data(0))):
        for inputs, target in window:
            pipe.backward(F.mse_loss(model(inputs), target))
        if number == 0:
            pipe.leave()
            assert all(parameter.grad is None for parameter in model.parameters())
        else:
            assert pipe.step().step == number - 1


def test_it_needs_a_window_that_all_have_fetched():
    _, pipe = attached(tg.Plan(accumulate=tg.Accumulate(K, fetch="batch")))
    with pytest.raises(tg.UsageError, match="needs a window"):
        pipe.leave()
    next(iter(next(iter(pipe.windows(data(0))))))
    with pytest.raises(tg.UnsupportedError, match='fetch="window"'):
        pipe.leave()


def test_an_empty_plan_refuses():
    _, pipe = attached(tg.Plan())
    next(iter(pipe.windows(data(0))))
    with pytest.raises(tg.UnsupportedError, match="leave"):
        pipe.leave()


def steps_early(collective, plan):
    model, pipe = attached(plan, collective)
    told = []
    for number, window in enumerate(pipe.windows(data(collective.rank))):
        for position, (inputs, target) in enumerate(window):
            if (number, position, collective.rank) != (1, 1, 1):
                pipe.backward(F.mse_loss(model(inputs), target))
        try:
            pipe.step()
        except tg.UsageError as error:
            told.append(str(error))
            pipe.abandon()
    return [parameter.detach().clone() for parameter in model.parameters()], told


@pytest.mark.parametrize("plan", PLANS)
def test_a_rank_that_steps_too_early_tells_the_others(plan):
    results = tg.collectives.run_threaded(WORLD, lambda collective: steps_early(collective, PLANS[plan]))
    for rank, (weights, (text,)) in enumerate(results):
        assert all(map(torch.equal, weights, results[0][0]))
        assert ("step() came after 1 of the window's 2" if rank == 1 else "another rank has failed before") in text
