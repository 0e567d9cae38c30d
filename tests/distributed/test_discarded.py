"""Gradients that the hook delivered and no optimizer took: told once, with what to do, which then keeps them all."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks

SPARSE = tg.Compress(tg.codecs.TopK(0.2), feedback=tg.ErrorFeedback())
STEPS = 4


def critic():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1))


def generator():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(4, 6)


def noise(step, size=6):
    return torch.randn(5, size, generator=torch.Generator().manual_seed(100 * dist.get_rank() + step))


class DataSGD(torch.optim.SGD):
    """As old optimizers are written: torch's version counters do not see its writes."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad.data, alpha=-group["lr"])


def adversarial(mode, compress=SPARSE):
    """A critic in DDP with the hook, and a generator whose backward passes through it: what was lost, and warnings."""
    plain, maker = critic(), generator()
    model = DistributedDataParallel(plain)
    hook = tg.ddp_comm_hook(model, compress)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.05) for module in (plain, maker)]
    twin = critic()
    put = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in plain.named_parameters()}
    got = {name: torch.zeros_like(total) for name, total in put.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(STEPS):
            real, fake = noise(step), maker(noise(step, 4)).detach()
            twin.load_state_dict(plain.state_dict())
            for network in (twin, model):
                network.zero_grad()
                (
                    network(fake).mean() - network(real).mean() if network is twin else both(network, fake, real)
                ).backward()
            for name, total in put.items():
                total += twin.get_parameter(name).grad.double()
                got[name] += plain.get_parameter(name).grad.double()
            optimizers[0].step()
            maker.zero_grad()
            if mode != "not cleared":
                plain.zero_grad()
            plain.requires_grad_(mode != "frozen")
            (-(plain if mode == "module" else model)(maker(noise(step, 4))).mean()).backward()
            plain.requires_grad_(True)
            optimizers[1].step()
    lost = whole = 0.0
    residual = hook.state_dict()["slots"].get("residual", {})
    for name, total in put.items():
        wanted, left = total / dist.get_world_size(), residual.get(name, torch.zeros_like(total)).double()
        dist.all_reduce(wanted)
        dist.all_reduce(left)
        lost += float((got[name] + left - wanted).square().sum())
        whole += float(wanted.square().sum())
    return (lost / whole) ** 0.5, [str(w.message) for w in caught if issubclass(w.category, tg.TightGradWarning)]


def both(network, fake, real):
    """One forward, as DDP wants it."""
    scores = network(torch.cat([fake, real]))
    return scores[: len(fake)].mean() - scores[len(fake) :].mean()


def refused(mode):
    with pytest.raises(tg.UsageError) as found:
        adversarial(mode)
    return str(found.value)


def gans():
    return {
        **{mode: adversarial(mode) for mode in ("through", "frozen", "module")},
        "not cleared": refused("not cleared"),
        "no feedback": adversarial("through", tg.Compress(tg.codecs.IntBlock(8))),
    }


def test_a_critic_that_is_not_frozen_loses_gradients_and_is_told_once():
    for index, rank in enumerate(run_ranks(2, gans)):
        error, said = rank["through"]
        assert len(said) == (index == 0), "rank 0 says it for all"
        assert all("freeze it meanwhile (requires_grad_(False)) or call model.module there" in text for text in said)
        assert error > 0.01
        for mode in ("frozen", "module"):
            error, said = rank[mode]
            assert (said, error < 1e-6) == ([], True), mode
        assert "freeze this network (requires_grad_(False))" in rank["not cleared"]
        assert rank["no feedback"][1] == [], "nothing is remembered, so nothing is lost"


def loops():
    """How a loop goes on after a backward, and how often it is told something."""

    def told(after, optimizer_class=torch.optim.SGD, micro_batches=1):
        model = DistributedDataParallel(critic())
        tg.ddp_comm_hook(model, SPARSE)
        optimizer = optimizer_class(model.parameters(), lr=0.05)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(3):
                for index in range(micro_batches):
                    model.require_backward_grad_sync = index == micro_batches - 1
                    model(noise(step)).square().mean().backward()
                after(model, optimizer, step)
        return len([w for w in caught if issubclass(w.category, tg.TightGradWarning)])

    def stepped(model, optimizer, step):
        optimizer.step()
        optimizer.zero_grad()

    def in_place(model, optimizer, step):
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    def skips_one(model, optimizer, step):
        if step != 1:
            optimizer.step()
        optimizer.zero_grad()

    def clears_only(model, optimizer, step):
        optimizer.zero_grad(set_to_none=False)

    return {
        "stepped": told(stepped),
        "in place": told(in_place),
        "accumulated": told(stepped, micro_batches=3),
        "adam": told(stepped, torch.optim.AdamW),
        "through .data": told(stepped, DataSGD),
        "skips one": told(skips_one),
        "clears only": told(clears_only),
    }


def test_loops_that_step_are_told_nothing():
    for index, rank in enumerate(run_ranks(2, loops)):
        told = int(index == 0)
        silent = ("stepped", "in place", "accumulated", "adam", "through .data")
        assert rank == {**dict.fromkeys(silent, 0), "skips one": told, "clears only": told}
