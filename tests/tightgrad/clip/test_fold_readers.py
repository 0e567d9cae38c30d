"""Whatever looks at gradients before the fused kernel sees clipped ones: only where nothing does is a factor folded."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import tightgrad as tg
from tightgrad.clip.fold import can_fold

MAX_NORM = 0.01
Seen = list[float]


def held(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def norm_of(optimizer: torch.optim.Optimizer) -> float:
    return float(torch.cat([parameter.grad.flatten() for parameter in held(optimizer)]).norm())


class OwnStep(torch.optim.SGD):
    """Takes gradients by hand, as cautious optimizers do."""

    seen: Seen

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.seen.append(norm_of(self))
        for parameter in held(self):
            parameter.sub_(parameter.grad)


class LooksFirst(torch.optim.AdamW):
    """Looks at gradients, then takes torch's fused step."""

    seen: Seen

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.seen.append(norm_of(self))
        super().step()


class OwnCollection(torch.optim.SGD):
    """torch's step, which collects gradients by a method of this class."""

    seen: Seen

    def _init_group(self, *args: Any) -> Any:
        self.seen.append(norm_of(self))
        return super()._init_group(*args)


class Mixin:
    seen: Seen

    def step(self, closure: Any = None) -> None:
        self.seen.append(norm_of(self))  # type: ignore[arg-type]
        super().step()  # type: ignore[misc]


class Mixed(Mixin, torch.optim.Adam):
    pass


class Unchanged(torch.optim.AdamW):
    """Another default only: torch's step, whole."""

    def __init__(self, parameters: Any, lr: float = 1e-2, **settings: Any) -> None:
        super().__init__(parameters, lr=lr, **settings)


class Lookahead(torch.optim.Optimizer):
    """A wrapper around an optimizer, which shares its groups."""

    def __init__(self, inner: torch.optim.Optimizer, seen: Seen) -> None:
        self.inner, self.seen = inner, seen
        super().__init__(held(inner), {})
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> None:
        self.seen.append(norm_of(self))
        self.inner.step()


def of_class(kind: Any) -> Callable[[list[nn.Parameter], Seen], torch.optim.Optimizer]:
    def make(parameters: list[nn.Parameter], seen: Seen) -> torch.optim.Optimizer:
        optimizer = kind(parameters, lr=1.0, fused=True)
        optimizer.seen = seen
        return optimizer

    return make


def patched(parameters: list[nn.Parameter], seen: Seen) -> torch.optim.Optimizer:
    """As Accelerate patches a step under fp16: by `functools.wraps`, on the instance."""
    optimizer = torch.optim.SGD(parameters, lr=1.0, fused=True)
    original = optimizer.step

    @functools.wraps(original)
    def step(*args: Any, **kwargs: Any) -> Any:
        seen.append(norm_of(optimizer))
        return original(*args, **kwargs)

    optimizer.step = step  # type: ignore[method-assign]
    return optimizer


def patched_under_a_scheduler(parameters: list[nn.Parameter], seen: Seen) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=1.0, fused=True)
    original = optimizer.step

    def step(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        seen.append(norm_of(self))
        return original()

    optimizer.step = step.__get__(optimizer)  # type: ignore[method-assign]
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return optimizer


def wrapped(parameters: list[nn.Parameter], seen: Seen) -> torch.optim.Optimizer:
    return Lookahead(torch.optim.SGD(parameters, lr=1.0, fused=True), seen)


def hooked(parameters: list[nn.Parameter], seen: Seen) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adagrad(parameters, lr=1.0, fused=True)
    optimizer.register_step_pre_hook(lambda stepped, args, kwargs: seen.append(norm_of(stepped)))
    return optimizer


READERS = {
    "own step": of_class(OwnStep),
    "looks first": of_class(LooksFirst),
    "own _init_group": of_class(OwnCollection),
    "mixin": of_class(Mixed),
    "patched instance": patched,
    "patched, then a scheduler": patched_under_a_scheduler,
    "wrapper": wrapped,
    "pre-hook": hooked,
}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, between: Callable[[], None] | None = None) -> None:
    pipe = tg.attach(model, optimizer, tg.Plan(clip=tg.clip.GlobalNorm(MAX_NORM)))
    for index, window in enumerate(pipe.windows([torch.ones(4, 8), torch.ones(4, 8) * 2, torch.ones(4, 8)])):
        for batch in window:
            pipe.backward((model(batch) - 5).square().mean())
        if index == 1 and between is not None:
            between()
        pipe.step()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(8, 1)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_sees_clipped_gradients(name: str) -> None:
    model, seen = network(), Seen()
    optimizer = READERS[name](list(model.parameters()), seen)
    assert not can_fold(optimizer)
    steps(model, optimizer)
    assert len(seen) == 3
    assert max(seen) <= MAX_NORM * (1 + 1e-6)


def test_an_own_step_is_as_long_as_the_bound_allows() -> None:
    model, seen = network(), Seen()
    optimizer = READERS["own step"](list(model.parameters()), seen)
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    pipe = tg.attach(model, optimizer, tg.Plan(clip=tg.clip.GlobalNorm(MAX_NORM)))
    for window in pipe.windows([torch.ones(4, 8)]):
        for batch in window:
            pipe.backward((model(batch) - 5).square().mean())
        assert pipe.step().clip_coef < 0.01
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(MAX_NORM, rel=1e-4)


@pytest.fixture
def global_hook() -> Iterator[Callable[[Seen], None]]:
    handles = []

    def register(seen: Seen) -> None:
        handles.append(register_optimizer_step_pre_hook(lambda stepped, args, kwargs: seen.append(norm_of(stepped))))

    yield register
    for handle in handles:
        handle.remove()


def test_hooks_that_come_after_attach(global_hook: Callable[[Seen], None]) -> None:
    for late in ("own", "global"):
        model, seen = network(), Seen()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
        assert can_fold(optimizer)

        def add(late: str = late, optimizer: torch.optim.Optimizer = optimizer, seen: Seen = seen) -> None:
            if late == "own":
                optimizer.register_step_pre_hook(lambda stepped, args, kwargs: seen.append(norm_of(stepped)))
            else:
                global_hook(seen)

        steps(model, optimizer, add)
        assert len(seen) == 2
        assert max(seen) <= MAX_NORM * (1 + 1e-6)


def test_a_step_of_another_optimizer_and_a_patched_class(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = list(network().parameters())
    one, other = (torch.optim.SGD(parameters, lr=1.0, fused=True) for _ in range(2))
    one.step = other.step  # type: ignore[method-assign]
    assert not can_fold(one)
    third = torch.optim.SGD(parameters, lr=1.0, fused=True)
    torch.optim.lr_scheduler.LambdaLR(third, lambda step: 1.0)
    other.step = third.step  # type: ignore[method-assign]
    assert not can_fold(other)
    assert can_fold(third)
    monkeypatch.setattr(torch.optim.SGD, "step", functools.wraps(torch.optim.SGD.step)(lambda self: None))
    assert not can_fold(torch.optim.SGD(parameters, lr=1.0, fused=True))


def test_a_scale_that_someone_else_has_put_there_stays() -> None:
    """Who sets `grad_scale` by hand has it divided by once, and gradients clipped."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)  # type: ignore[attr-defined]
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    pipe = tg.attach(model, optimizer, tg.Plan(clip=tg.clip.GlobalNorm(MAX_NORM)))
    for window in pipe.windows([torch.ones(4, 8)]):
        for batch in window:
            pipe.backward((model(batch) - 5).square().mean())
        pipe.step()
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(MAX_NORM / 4, rel=1e-3)
    assert float(optimizer.grad_scale) == 4.0  # type: ignore[attr-defined]


def test_what_torch_puts_around_its_own_step_is_known() -> None:
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad, Unchanged):
        optimizer = kind(network().parameters(), lr=1.0, fused=True)
        assert can_fold(optimizer)
        torch.optim.lr_scheduler.StepLR(optimizer, 10)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        assert can_fold(optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
        assert can_fold(optimizer)
        assert can_fold(copy.deepcopy(optimizer))


def test_post_hooks_see_clipped_gradients_also_where_it_is_folded() -> None:
    model, seen = network(), Seen()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    optimizer.register_step_post_hook(lambda stepped, args, kwargs: seen.append(norm_of(stepped)))
    assert can_fold(optimizer)
    steps(model, optimizer)
    assert len(seen) == 3
    assert max(seen) <= MAX_NORM * (1 + 1e-5)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_a_hook_does_not_change_a_bit(kind: Any) -> None:
    """A hook on one rank only, for logging, must not make that rank's weights drift from the others'."""
    results: list[list[Tensor]] = []
    for has_hook in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 33), nn.Tanh(), nn.Linear(33, 3))
        optimizer = kind(model.parameters(), lr=1e-2, fused=True)
        if has_hook:
            optimizer.register_step_pre_hook(lambda stepped, args, kwargs: None)
        assert can_fold(optimizer) is not has_hook
        steps(model, optimizer)
        results.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_insisting_names_what_is_in_the_way() -> None:
    model = network()
    plan = tg.Plan(clip=tg.clip.GlobalNorm(1.0, fold="on"))
    with pytest.raises(tg.ConfigError, match="OwnStep is not torch's own"):
        tg.attach(model, OwnStep(model.parameters(), lr=1.0, fused=True), plan)
    with pytest.raises(tg.ConfigError, match="pre-hook"):
        tg.attach(model, hooked(list(model.parameters()), Seen()), plan)
    model = network().double()
    with pytest.raises(tg.ConfigError, match="float64"):
        tg.attach(model, torch.optim.SGD(model.parameters(), lr=1.0, fused=True), plan)
