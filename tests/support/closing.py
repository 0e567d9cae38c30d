"""Optimizers that take several gradients in one step, in the shapes in which people write them; their loop by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class TwoStepSAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation around another optimizer, in the widespread shape: `first_step` and `second_step`,
    and a `step(closure)` that takes the first gradient from the loop.
    """

    def __init__(self, params, base=torch.optim.SGD, rho=0.05, **settings):
        super().__init__(params, {"rho": rho, **settings})
        self.base = base(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        held = [(group["rho"], p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        length = torch.stack([p.grad.norm() for _, p in held]).norm() + 1e-12
        for rho, p in held:
            self.state[p]["before"] = p.detach().clone()
            p.add_(p.grad * (rho / length))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for p, state in self.state.items():
            p.data = state["before"]
        self.base.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "needs a closure"
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            closure()
        self.second_step()


class HalvesOnly(TwoStepSAM):
    """Has no `step` but the one it inherits."""

    step = torch.optim.SGD.step


class StepOnlySays(TwoStepSAM):
    """Has a `step` that takes a closure, and only says which methods to call, as SAM's first version did."""

    def step(self, closure=None):
        raise NotImplementedError("call first_step and second_step")


class Climbing(torch.optim.SGD):
    """SAM with the first gradient from the loop, and a closure that its signature asks for; no name gives it away."""

    def step(self, closure):
        held = [p for group in self.param_groups for p in group["params"]]
        length = torch.cat([p.grad.flatten() for p in held]).norm() + 1e-12
        climbs = [p.grad * (0.05 / length) for p in held]
        with torch.no_grad():
            for p, climb in zip(held, climbs, strict=True):
                p.add_(climb)
        loss = closure()
        with torch.no_grad():
            for p, climb in zip(held, climbs, strict=True):
                p.sub_(climb)
        super().step()
        return loss


class CallsTwice(torch.optim.SGD):
    """SAM that calls its closure for both gradients, says nowhere that it needs one, and moves weights through `.data`,
    which torch does not count.
    """

    def step(self, closure=None):
        if closure is None:
            return super().step()
        loss = closure()
        held = [p for group in self.param_groups for p in group["params"]]
        length = torch.cat([p.grad.flatten() for p in held]).norm() + 1e-12
        climbs = [p.grad * (0.05 / length) for p in held]
        for p, climb in zip(held, climbs, strict=True):
            p.data.add_(climb)
        closure()
        for p, climb in zip(held, climbs, strict=True):
            p.data.sub_(climb)
        super().step()
        return loss


class ClimbsThroughData(CallsTwice):
    """Moves weights through `.data` before the closure's only call, and leaves the gradients where they are."""

    def step(self, closure=None):
        held = [p for group in self.param_groups for p in group["params"]]
        for p in held:
            p.data.mul_(1.01)
        closure()
        for p in held:
            p.data.div_(1.01)
        super(CallsTwice, self).step()


def lbfgs(params):
    return torch.optim.LBFGS(params, lr=0.1, max_iter=4)


def strong_wolfe(params):
    return torch.optim.LBFGS(params, max_iter=5, line_search_fn="strong_wolfe")


def sam(params):
    return TwoStepSAM(params, lr=0.1, momentum=0.9)


def halves(params):
    return HalvesOnly(params, torch.optim.AdamW, lr=0.01)


def says(params):
    return StepOnlySays(params, lr=0.1, momentum=0.9)


def climbing(params):
    return Climbing(params, lr=0.1, momentum=0.9)


def twice(params):
    return CallsTwice(params, lr=0.1)


def through_data(params):
    return ClimbsThroughData(params, lr=0.1)


KINDS: list[Callable[[Any], Any]] = [lbfgs, strong_wolfe, sam, halves, says, climbing, twice, through_data]


def by_hand(
    model: nn.Module,
    optimizer: Any,
    loss_of: Callable[[nn.Module, Any], Tensor],
    batches: list[Any],
    max_norm: float | None = None,
) -> list[float]:
    """Train with one big batch for each step; return the losses before each."""

    def closure(batch: Any) -> Tensor:
        model.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        return loss

    losses = []
    for batch in batches:
        losses.append(float(closure(batch).detach()))
        if isinstance(optimizer, HalvesOnly | StepOnlySays):
            optimizer.first_step()
            closure(batch)
            optimizer.second_step()
        else:
            optimizer.step(partial(closure, batch))
    return losses
