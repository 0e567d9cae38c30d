"""What is read of a loss's graph leaves it whole while a TorchDispatchMode runs, as profilers and audits have one."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tightgrad as tg


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def entropy(model, x, reduction="mean"):
    return functional.cross_entropy(model(x), torch.arange(len(x)) % 3, reduction=reduction)


LOSSES = {
    "divided": lambda model, x: entropy(model, x) / 5,
    "times": lambda model, x: entropy(model, x) * 0.2,
    "divided and multiplied": lambda model, x: entropy(model, x) / 5 * 5,
    "two terms": lambda model, x: entropy(model, x) / 5 + 0.1 * model(x).square().mean() / 5,
    "a sum over the samples": lambda model, x: entropy(model, x, "sum") / len(x),
    "a tensor": lambda model, x: entropy(model, x) * torch.tensor(0.2),
}


def trained(loss_of, mode):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(3), clip=tg.clip.GlobalNorm(1.0)))
    data = [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(9)]
    with mode:
        for window in pipe.windows(data):
            for x in window:
                pipe.backward(loss_of(model, x))
            pipe.step()
    return model.state_dict()


@pytest.mark.filterwarnings("ignore::tightgrad.TightGradWarning")
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_looked_at_and_trained(name):
    expected = trained(LOSSES[name], torch.enable_grad())
    for mode in (Passing(), FlopCounterMode(display=False)):
        have = trained(LOSSES[name], mode)
        assert all(torch.equal(have[key], expected[key]) for key in expected)
