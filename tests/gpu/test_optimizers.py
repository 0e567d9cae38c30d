"""Clip factors in fused steps, and torch's GradScaler, on the device."""

import copy
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from support.device import DEVICE, ON_CUDA, skip_without_device, without_waiting
from tightgrad.clip.fold import can_fold, folded
from tightgrad.clip.one_factor import clip_coefficient
from tightgrad.scaling import LAMB, LARS

skip_without_device()

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
FUSED: dict[str, Make] = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, fused=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2, fused=True),
}
K = 2


def fused(name: str, model: nn.Module) -> torch.optim.Optimizer:
    probe = nn.Parameter(torch.zeros(8, device=DEVICE))
    probe.grad = torch.zeros_like(probe)
    try:
        FUSED[name]([probe]).step()
    except RuntimeError as error:  # some versions of torch have no fused Adagrad for CUDA
        pytest.skip(str(error).splitlines()[0])
    return FUSED[name](model.parameters())


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)).to(DEVICE)


def batches(count: int = 5) -> list[Tensor]:
    drawing = torch.Generator().manual_seed(2)
    return [torch.randn(8, 16, generator=drawing).to(DEVICE) * 10 for _ in range(count)]


def train(name: str, fold: str, max_norm: float = 0.05, poisoned: int = -1) -> list[Tensor]:
    model = network()
    optimizer = fused(name, model)
    assert can_fold(optimizer)
    plan = tg.Plan(clip=tg.clip.GlobalNorm(max_norm, fold=fold), guard=tg.Guard("skip"))
    pipe = tg.attach(model, optimizer, plan)
    for index, window in enumerate(pipe.windows(batches())):
        for batch in window:
            loss = model(batch).square().sum()
            pipe.backward(loss * math.nan if index == poisoned else loss)
        record = pipe.step()
        assert record.skipped == (index == poisoned)
        assert record.skipped or (record.clip_coef is not None and record.clip_coef < 1.0)
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("poisoned", [-1, 2])
def test_folding_equals_clip_then_step(name: str, poisoned: int) -> None:
    for one, other in zip(train(name, "on", poisoned=poisoned), train(name, "off", poisoned=poisoned), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUSED)
def test_a_folded_step_makes_nobody_wait(name: str) -> None:
    model = network()
    optimizer = fused(name, model)
    for _ in range(2):  # the first step makes the optimizer's state
        model(batches(1)[0]).square().sum().backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if optimizer.state:
            with without_waiting(), folded(optimizer, clip_coefficient(tg.get_total_norm(grads), 0.05)):
                optimizer.step()
        else:
            optimizer.step()


@pytest.mark.parametrize("name", FUSED)
def test_found_inf_leaves_everything_as_it_was(name: str) -> None:
    model = network()
    optimizer = fused(name, model)
    model(torch.ones(2, 16, device=DEVICE)).sum().backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_(math.nan)
    factor, found = torch.tensor(math.nan, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    with folded(optimizer, factor, found_inf=found):
        optimizer.step()
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_layerwise_optimizers_are_those_of_the_cpu(kind: type[torch.optim.Optimizer]) -> None:
    results = []
    for device in (DEVICE, torch.device("cpu")):
        model = network().to(device)
        optimizer = kind(model.parameters(), lr=0.01)
        for batch in batches():
            optimizer.zero_grad()
            model(batch.to(device)).square().mean().backward()
            optimizer.step()
        results.append([parameter.detach().cpu() for parameter in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler(DEVICE.type, init_scale=1024.0, growth_interval=3)


def amp_loss(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast(DEVICE.type, dtype=torch.float16 if ON_CUDA else torch.bfloat16):
        output = model(batch)
    return (output.float() - batch[:, :4]).square().mean()


def overflowing(count: int = 16) -> list[Tensor]:
    """One micro-batch whose gradient overflows once its loss is scaled."""
    loader = [batch / 10 for batch in batches(count)]
    loader[9] = loader[9] * (300.0 if ON_CUDA else 1e19)
    return loader


def torchs_loop(loader: list[Tensor]) -> tuple[nn.Module, list[float], list[float]]:
    model, own = network(), scaler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scales, norms = [], []
    for start in range(0, len(loader), K):
        for batch in loader[start : start + K]:
            own.scale(amp_loss(model, batch) / K).backward()
        own.unscale_(optimizer)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
        own.step(optimizer)
        own.update()
        optimizer.zero_grad()
        scales.append(own.get_scale())
    return model, scales, norms


@pytest.mark.parametrize("fold", ["on", "off"])
def test_a_grad_scaler_with_overflow_and_growth_is_torchs_loop(fold: str) -> None:
    loader = overflowing()
    theirs, their_scales, norms = torchs_loop(loader)
    model, own = network(), scaler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    clip = tg.clip.GlobalNorm(0.05, compat="torch", fold=fold)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(K), clip=clip), scaler=own)
    scales, skips = [], []
    for window, norm in zip(pipe.windows(loader), norms, strict=True):
        for batch in window:
            pipe.backward(amp_loss(model, batch))
        record = pipe.step()
        assert record.skipped or record.grad_norm == pytest.approx(norm, rel=1e-5)
        scales.append(own.get_scale())
        skips.append(record.skip_reason)
    assert scales == their_scales
    assert skips == [None] * 4 + ["nonfinite"] + [None] * 3
    for ours, other in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)
