"""Sees every gradient at the moment the user's optimizer takes it, without changing the loop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


@dataclass(frozen=True)
class Taken:
    """One `optimizer.step()`.

    Args:
        weights: float64 parameters before it, by name.
        gradient: what it took, float64 by name; zeros where there was none.
        dtype: of the gradients; the lowest precision if they differ.
        missing: names of trainable parameters without a gradient.
    """

    weights: dict[str, Tensor]
    gradient: dict[str, Tensor]
    dtype: torch.dtype
    missing: tuple[str, ...]


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Taken]]:
    """Record all steps of optimizers that hold parameters of `model`, also once it has been wrapped or sharded."""
    taken: list[Taken] = []

    def seen(optimizer: Optimizer) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(id(parameter) in names for parameter in held):
            taken.append(_take(model, optimizer))

    def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            seen(optimizer)
            return None
        wrapped = _then(closure, lambda: seen(optimizer))
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    handle = register_optimizer_step_pre_hook(before_step)
    try:
        yield taken
    finally:
        handle.remove()


def _then(closure: Callable[[], Any], after: Callable[[], None]) -> Callable[[], Any]:
    def both() -> Any:
        result = closure()
        after()
        return result

    return both


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Float64 copies of all parameters, whole also if they are sharded."""
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    """A float64 copy of all elements. Collective if the tensor is sharded."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().double().cpu().clone()


@torch.no_grad()
def _take(model: nn.Module, optimizer: Optimizer) -> Taken:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    scale = getattr(optimizer, "grad_scale", None)
    gradients, missing = {}, []
    dtypes = [torch.float32]
    for name, parameter in parameters.items():
        if parameter.grad is None:
            missing.append(name)
            gradients[name] = torch.zeros(parameter.shape, dtype=torch.float64)
            continue
        dtypes.append(parameter.grad.dtype)
        gradient = whole(parameter.grad)
        gradients[name] = gradient / scale.double().cpu() if isinstance(scale, Tensor) else gradient
    lowest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return Taken(weights_of(model), gradients, lowest, tuple(missing))
