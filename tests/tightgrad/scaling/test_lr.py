import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LRScheduler, SequentialLR, StepLR

import tightgrad as tg
from tightgrad.core.errors import ConfigError

BASE, SCALED, NUM_STEPS = 0.1, 0.8, 4
GRADUAL = [0.1, 0.275, 0.45, 0.625, 0.8, 0.8, 0.8]
CONSTANT = [0.1, 0.1, 0.1, 0.1, 0.8, 0.8, 0.8]

positive = st.floats(1e-6, 1e6)


def make_optimizer(*rates: float) -> Optimizer:
    return SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates or (SCALED,)])


def rates_of(optimizer: Optimizer, scheduler: LRScheduler, num_steps: int) -> list[float]:
    """The rate of each applied step."""
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_scale_lr_rules() -> None:
    assert tg.scale_lr(0.1, 256, 8192) == pytest.approx(3.2, rel=1e-15)
    assert tg.scale_lr(0.1, 256, 8192, "sqrt") == pytest.approx(0.1 * math.sqrt(32), rel=1e-15)
    assert tg.scale_lr(0.1, 256, 8192, "none") == 0.1


@given(positive, positive, positive, positive, st.sampled_from(["linear", "sqrt", "none"]))
def test_scale_lr_does_not_depend_on_the_way(base: float, b0: float, b1: float, b2: float, rule: str) -> None:
    direct = tg.scale_lr(base, b0, b2, rule)
    in_two_steps = tg.scale_lr(tg.scale_lr(base, b0, b1, rule), b1, b2, rule)
    assert in_two_steps == pytest.approx(direct, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((0.0, 1, 2), "base_lr"),
        ((0.1, 0, 2), "base_batch"),
        ((0.1, 1, -2), "batch"),
        ((0.1, 1, 2, "cubic"), "linear"),
    ],
)
def test_scale_lr_refuses(values: tuple[object, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        tg.scale_lr(*values)


@pytest.mark.parametrize(("shape", "expected"), [("gradual", GRADUAL), ("constant", CONSTANT)])
def test_warmup_goes_from_the_base_rate_to_the_scaled_one(shape: str, expected: list[float]) -> None:
    optimizer = make_optimizer()
    warmup = tg.Warmup(optimizer, BASE, NUM_STEPS, shape)
    assert rates_of(optimizer, warmup, len(expected)) == pytest.approx(expected, rel=1e-12)


def test_each_group_has_its_own_rates() -> None:
    optimizer = make_optimizer(0.8, 0.04)
    warmup = tg.Warmup(optimizer, [0.1, 0.02], 2)
    seen = []
    for _ in range(3):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        warmup.step()
    assert seen == [pytest.approx(rates, rel=1e-12) for rates in ([0.1, 0.02], [0.45, 0.03], [0.8, 0.04])]


def then_steps(optimizer: Optimizer) -> LRScheduler:
    return StepLR(optimizer, step_size=2, gamma=0.1)


def sequential(optimizer: Optimizer) -> LRScheduler:
    warmup = tg.Warmup(optimizer, BASE, NUM_STEPS)
    return SequentialLR(optimizer, [warmup, then_steps(optimizer)], milestones=[NUM_STEPS])


def chained(optimizer: Optimizer) -> LRScheduler:
    return ChainedScheduler([tg.Warmup(optimizer, BASE, NUM_STEPS), CosineAnnealingLR(optimizer, T_max=10)], optimizer)


def plain(optimizer: Optimizer) -> LRScheduler:
    return tg.Warmup(optimizer, BASE, NUM_STEPS)


def test_sequential_runs_the_next_scheduler_from_the_scaled_rate() -> None:
    optimizer = make_optimizer()
    expected = [*GRADUAL[:NUM_STEPS], 0.8, 0.8, 0.08, 0.08, 0.008]
    assert rates_of(optimizer, sequential(optimizer), len(expected)) == pytest.approx(expected, rel=1e-12)


def test_sequential_can_start_a_warmup_later() -> None:
    optimizer = make_optimizer()
    schedulers = [StepLR(optimizer, step_size=1, gamma=0.5), tg.Warmup(optimizer, BASE, NUM_STEPS)]
    scheduler = SequentialLR(optimizer, schedulers, milestones=[3])
    expected = [0.8, 0.4, 0.2, *GRADUAL]
    assert rates_of(optimizer, scheduler, len(expected)) == pytest.approx(expected, rel=1e-12)


def test_chained_multiplies() -> None:
    optimizer = make_optimizer()
    cosine = [(1 + math.cos(math.pi * step / 10)) / 2 for step in range(7)]
    expected = [rate * factor for rate, factor in zip(GRADUAL, cosine, strict=True)]
    assert rates_of(optimizer, chained(optimizer), 7) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [plain, sequential, chained])
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_resume_goes_on_as_if_it_had_not_stopped(make: Callable[[Optimizer], LRScheduler], stop: int) -> None:
    optimizer = make_optimizer()
    whole = rates_of(optimizer, make(optimizer), 9)

    first = make_optimizer()
    scheduler = make(first)
    before = rates_of(first, scheduler, stop)
    second = make_optimizer()
    resumed = make(second)
    resumed.load_state_dict(scheduler.state_dict())
    second.load_state_dict(first.state_dict())
    assert before + rates_of(second, resumed, 9 - stop) == whole


def test_skipped_steps_do_not_count() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=SCALED)
    warmup = tg.Warmup(optimizer, BASE, NUM_STEPS)
    pipe = tg.attach(model, optimizer, tg.Plan(guard=tg.Guard(on_nonfinite="skip")), scheduler=warmup)
    good, bad = torch.ones(1, 2), torch.full((1, 2), torch.nan)
    applied = []
    for window in pipe.windows([good, bad, bad, good, good]):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        rate = optimizer.param_groups[0]["lr"]
        if not pipe.step().skipped:
            applied.append(rate)
    assert applied == pytest.approx(GRADUAL[:3], rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"base_lr": 0.0, "num_steps": 1}, "base_lr"),
        ({"base_lr": [0.1, 0.1], "num_steps": 1}, "2 rates"),
        ({"base_lr": 0.1, "num_steps": 0}, "num_steps"),
        ({"base_lr": 0.1, "num_steps": 1, "shape": "cosine"}, "gradual"),
    ],
)
def test_warmup_refuses_and_leaves_the_optimizer_alone(settings: dict[str, object], named: str) -> None:
    optimizer = make_optimizer()
    with pytest.raises(ConfigError, match=named):
        tg.Warmup(optimizer, **settings)
    assert optimizer.param_groups[0]["lr"] == SCALED
    assert "initial_lr" not in optimizer.param_groups[0]
