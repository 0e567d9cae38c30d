"""Folding the factor into a fused step equals clip-then-step."""

import copy
import math

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.clip.fold import can_fold, folded
from tightgrad.clip.one_factor import clip_coefficient

OPTIMIZERS = {
    "Adam": lambda parameters, fused: torch.optim.Adam(parameters, lr=1e-2, fused=fused),
    "AdamW": lambda parameters, fused: torch.optim.AdamW(parameters, lr=1e-2, fused=fused),
    "SGD": lambda parameters, fused: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, fused=fused),
    "Adagrad": lambda parameters, fused: torch.optim.Adagrad(parameters, lr=1e-2, fused=fused),
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))


def train(optimizer_name: str, fold: str, fused: bool, max_norm: float = 1.0, poisoned: int = -1) -> list[torch.Tensor]:
    model = network()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters(), fused)
    plan = tg.Plan(clip=tg.clip.GlobalNorm(max_norm, fold=fold), guard=tg.Guard("skip"))
    pipe = tg.attach(model, optimizer, plan)
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(8, 16, generator=generator) * 10 for _ in range(5)]
    for index, window in enumerate(pipe.windows(batches)):
        for batch in window:
            loss = model(batch).square().sum()
            pipe.backward(loss * math.nan if index == poisoned else loss)
        record = pipe.step()
        assert record.skipped == (index == poisoned)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [1.0, 0.05])
def test_equals_clip_then_step(name: str, max_norm: float) -> None:
    on, off = train(name, "on", True, max_norm), train(name, "off", True, max_norm)
    for one, other in zip(on, off, strict=True):
        # g / (1 / c) is rounded twice more than g * c, in five steps.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_auto_falls_back(name: str) -> None:
    for one, other in zip(train(name, "auto", False), train(name, "off", False), strict=True):
        assert torch.equal(one, other)


def test_insisting_needs_a_fused_optimizer() -> None:
    model = network()
    with pytest.raises(tg.ConfigError, match="fused=True"):
        tg.attach(model, torch.optim.AdamW(model.parameters()), tg.Plan(clip=tg.clip.GlobalNorm(1.0, fold="on")))
    assert not can_fold(torch.optim.RMSprop(model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_found_inf_leaves_everything_as_it_was(name: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters(), True)
    model(torch.ones(2, 16)).sum().backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    for parameter in model.parameters():
        parameter.grad.fill_(math.nan)
    with folded(optimizer, torch.tensor(math.nan), found_inf=torch.tensor(1.0)):
        optimizer.step()
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)


@pytest.mark.parametrize("unscale_first", [True, False])
def test_with_a_grad_scaler(unscale_first: bool) -> None:
    results = []
    for fold in (True, False):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(model(torch.ones(4, 16) * 10).square().sum()).backward()
        if unscale_first or not fold:
            scaler.unscale_(optimizer)
        norm = tg.get_total_norm([p.grad for p in model.parameters()])
        if not (unscale_first or not fold):
            norm = norm / scaler.get_scale()
        coefficient = clip_coefficient(norm, 1.0)
        if fold:
            with folded(optimizer, coefficient):
                scaler.step(optimizer)
        else:
            tg.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "grad_scale")
        results.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


def test_a_skipped_step_leaves_no_trace() -> None:
    """Bit-identical to a run without that batch: parameters and optimizer state."""

    def run(batches: list[torch.Tensor]) -> list[torch.Tensor]:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        plan = tg.Plan(clip=tg.clip.ZClip(warmup_steps=2, max_norm=1.0), guard=tg.Guard("skip"))
        pipe = tg.attach(model, optimizer, plan)
        for window in pipe.windows(batches):
            for batch in window:
                pipe.backward(model(batch).square().sum())
            pipe.step()
        return [*model.parameters(), *(tensor for tensor in pipe.state.slots["zclip_statistics"].values())]

    good = [torch.full((2, 16), value) for value in (1.0, 2.0, 3.0, 50.0)]
    bad = torch.full((2, 16), math.nan)
    for one, other in zip(run(good), run([good[0], bad, *good[1:3], bad, good[3]]), strict=True):
        assert torch.equal(one, other)
