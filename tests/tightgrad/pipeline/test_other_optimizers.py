"""An optimizer that the loop makes after attach, and that the pipeline does not step, is told."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import tightgrad as tg
from support.in_turn import in_turn
from support.ranks import run_ranks

K = 2
PLAN = tg.Plan(accumulate=tg.Accumulate(K))


def train(change, kind=torch.optim.AdamW, windows=8, at=4, wrap=lambda model: model):
    """Run `change(model, optimizer)` before a window; return what was warned of. What it returns lives on."""
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)))
    optimizer = kind(model.parameters(), lr=0.1)
    pipe, kept = tg.attach(model, optimizer, PLAN), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, window in enumerate(pipe.windows([torch.ones(3, 4)] * (K * windows))):
            for batch in window:
                loss = model(batch).square().mean()
                pipe.backward(loss)
            pipe.step()
            if number == at:
                kept.append(change(model, optimizer))
    assert all(one.filename == __file__ for one in caught), [one.filename for one in caught]
    return [str(one.message) for one in caught]


def anew(model, optimizer):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def with_schedule(model, optimizer):
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters(), lr=0.01), 1)


def of_the_head(model, optimizer):
    return torch.optim.SGD([{"params": [model[2].weight]}, {"params": [torch.ones(1, requires_grad=True)]}], lr=0.01)


@pytest.mark.parametrize(("change", "at"), in_turn([anew, with_schedule, of_the_head], [0, 1, 4]))
def test_a_new_optimizer_is_told_once(change, at):
    (text,) = train(change, at=at)
    assert "SGD) " in text
    assert "AdamW" in text
    assert "attach(model, optimizer, plan) again" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda model, optimizer: list(model.parameters()),  # clip, count, log
        lambda model, optimizer: {p: p.detach().clone() for p in model.parameters()},  # an average of weights
        lambda model, optimizer: torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1),  # of another model
        lambda model, optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
        lambda model, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
        lambda model, optimizer: copy.deepcopy(optimizer),
        lambda model, optimizer: model(torch.ones(3, 4)),
        lambda model, optimizer: torch.optim.swa_utils.AveragedModel(model),
        lambda model, optimizer: anew(model, optimizer).param_groups[0]["lr"],  # gone again
    ],
)
@pytest.mark.parametrize("at", [0, 4])
def test_what_else_may_refer_to_parameters(change, at):
    assert train(change, at=at) == []


class Wrapped(torch.optim.Optimizer):
    """Steps an optimizer with groups of its own, as sharded optimizers do, and makes another one later."""

    def __init__(self, params, lr):
        params = list(params)
        super().__init__(params, {"lr": lr})
        self.parts = [torch.optim.SGD(params, lr=lr)]

    @torch.no_grad()
    def step(self, closure=None):
        self.parts = [*self.parts[:1], torch.optim.SGD(list(self.param_groups[0]["params"]), lr=0.1)]
        self.parts[0].step()


def test_optimizers_made_of_others():
    assert train(lambda model, optimizer: list(model.parameters()), kind=Wrapped) == []


def test_the_old_one_is_left_alone_after_another_attach():
    model, kept = nn.Linear(4, 1), []
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        kept.append(kind(model.parameters(), lr=0.1))
        pipe = tg.attach(model, kept[-1], PLAN)
        for window in pipe.windows([torch.ones(3, 4)] * (4 * K)):
            for batch in window:
                pipe.backward(model(batch).square().mean())
            pipe.step()
            kept.append(list(model.parameters()))


def told(wrap, at):
    return train(anew, wrap=wrap, at=at)


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, fully_shard])
def test_rank_zero_tells_under_a_wrapper(wrap, at):
    first, second = run_ranks(2, told, wrap, at)
    assert len(first) == 1
    assert "another optimizer (SGD)" in first[0]
    assert second == []
