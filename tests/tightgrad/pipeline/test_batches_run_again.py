"""A batch that runs several times is whole each time, whatever the loss's function does to it: after running out of
memory, in a closure, in two passes.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg
from support.in_turn import in_turn

SIZES = (4, 2, 5, 1)


def batches():
    generator = torch.Generator().manual_seed(2)
    return [{name: torch.randn(n, m, generator=generator).double() for name, m in (("x", 6), ("y", 3))} for n in SIZES]


class Sharp(torch.optim.SGD):
    """Climbs by a twentieth of the gradient, takes the gradient there, and steps from where it was."""

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["before"] = p.clone()
            p.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["before"])
        self.step()


class Own(torch.optim.SGD):
    """Moves before it asks its optional closure."""

    def step(self, closure=None):
        with torch.no_grad():
            self.param_groups[0]["params"][0].mul_(0.9)
        closure() if closure is not None else None
        return super().step()


def doubled(model, batch):
    return F.mse_loss(model(batch["x"].mul_(2.0)), batch["y"])


def taken_out(model, batch):
    return F.mse_loss(model(2.0 * batch.pop("x")), batch.pop("y"))


def put_in(model, batch):
    batch["x"] = 2.0 * batch["x"]
    return F.mse_loss(model(batch["x"]), batch["y"])


def as_it_is(model, batch):
    return F.mse_loss(model(2.0 * batch["x"]), batch["y"])


OPTIMIZERS = {
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, max_iter=3),
    "SAM": lambda parameters: Sharp(parameters, lr=0.1),
    "an optional closure": lambda parameters: Own(parameters, lr=0.1),
    "out of memory": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def trained(loss_of, name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 3).double()

    def loss(batch):
        too_large = name == "out of memory" and len(batch["x"]) > 3
        found = loss_of(model, batch)
        if too_large:
            raise torch.OutOfMemoryError("too large")
        return found

    on_oom = "split" if name == "out of memory" else "raise"
    plan = tg.Plan(accumulate=tg.Accumulate(4, fetch="window", on_oom=on_oom))
    pipe = tg.attach(model, OPTIMIZERS[name](model.parameters()), plan)
    for window in pipe.windows(batches()):
        record = pipe.run(window, loss)
    assert record.retries == (name == "out of memory")
    return model.weight


@pytest.mark.parametrize(("loss_of", "name"), in_turn([doubled, taken_out, put_in], OPTIMIZERS))
def test_each_time_it_is_whole(loss_of, name):
    assert torch.equal(trained(loss_of, name), trained(as_it_is, name))


def test_a_batch_that_runs_once_is_not_copied():
    model, given, seen = nn.Linear(6, 3).double(), batches(), []
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(accumulate=tg.Accumulate(4)))
    for window in pipe.windows(given):
        pipe.run(window, lambda batch: (seen.append(batch), as_it_is(model, batch))[1])
    assert all(one is other for one, other in zip(seen, given, strict=True))
