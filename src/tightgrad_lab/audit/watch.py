"""Sees every gradient at the moment the user's optimizers take it, without changing the loop.

All `step()` calls between two backwards are one, and so are those of optimizers that hold different parameters: two
optimizers, one for each parameter, a GAN's. LBFGS evaluates its closure often; the first time counts.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tightgrad_lab.audit.terms import Terms, terms_of

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """What one optimizer took.

    Args:
        names: of its parameters, as far as they train.
        weights: float64 parameters that the last backward before it saw, by name; all of the model.
    """

    names: tuple[str, ...]
    weights: Weights


@dataclass
class Taken:
    """One step of the loop: all `optimizer.step()` that belong together.

    Args:
        parts: one for each optimizer.
        gradient: what they took, float64 by name; zeros where there was none.
        dtype: of the gradients; the lowest precision if they differ.
        missing: names of parameters that train and have no gradient.
        frozen: names of parameters that do not require a gradient and changed all the same.
        moved: whether any weight changed.
        after: a digest of all weights after it.
        terms: of the losses that `backward` was called on since the step before.
    """

    parts: list[Part] = field(default_factory=list)
    gradient: Weights = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    missing: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    moved: bool = False
    after: str = ""
    terms: list[Terms] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all parameters that were stepped, part by part."""
        return tuple(name for part in self.parts for name in part.names)


class Watch:
    """Records the steps of all optimizers that hold parameters of `model`, also once it is wrapped or sharded.

    Args:
        model: as `build_model` gave it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.steps: list[Taken] = []
        self.held: set[str] = set()
        self.has_nan_loss = False
        self._backwards = 0
        self._terms: list[Terms] = []
        self._backwards_at_step = -1
        self._seen: Weights | None = None
        self._before: list[Weights] = []
        self._tentative: list[bool] = []

    def backward(self, roots: Any) -> None:
        """A backward from `roots` begins; the weights that it sees are those that its gradient is of."""
        self._backwards += 1
        self._terms.append(terms_of(roots))
        self.has_nan_loss |= isinstance(roots, Tensor) and bool(roots.detach().isnan().any())
        sharded = any(
            hasattr(module, "unshard") for module in self.model.modules()
        )  # FSDP2: whole only in a collective
        self._seen = None if sharded else weights_of(self.model)

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record what is taken, now or once the closure has run."""
        self._before.append(weights_of(self.model) if self._names(optimizer) else {})
        self._tentative.append(False)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._record(optimizer)
            return None
        depth = len(self._tentative) - 1
        done = False

        def once() -> None:
            nonlocal done
            if not done:
                done = True
                self._record(optimizer)
                self._tentative[depth] = True

        wrapped = _then(closure, once)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at what changed."""
        self._tentative.pop()
        before = self._before.pop()
        if not before or not self.steps:
            return
        now = weights_of(self.model)
        changed = [name for name in before if name in now and not torch.equal(before[name], now[name])]
        step = self.steps[-1]
        step.moved |= bool(changed)
        trains = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        step.frozen += [name for name in changed if name not in trains and name not in step.frozen]
        step.after = digest(now)

    def _names(self, optimizer: Optimizer) -> dict[str, nn.Parameter]:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return {names[id(parameter)]: parameter for parameter in held if id(parameter) in names}

    def _record(self, optimizer: Optimizer) -> None:
        held = self._names(optimizer)
        if not held:
            return
        self.held |= set(held)
        if any(self._tentative) and self._backwards > self._backwards_at_step:
            self.steps.pop()  # SAM: the optimizer inside steps with another gradient than the closure's first
            self._tentative = [False] * len(self._tentative)
        trains = {name: parameter for name, parameter in held.items() if parameter.requires_grad}
        step = self.steps[-1] if self.steps else None
        fresh = self._backwards > self._backwards_at_step
        if step is None or (fresh and set(trains) & set(step.names)):
            step = Taken(terms=self._terms)
            self._terms = []
            self.steps.append(step)
        self._backwards_at_step = self._backwards
        new = {name: parameter for name, parameter in trains.items() if name not in step.names}
        if new:
            step.parts.append(Part(tuple(new), self._seen if self._seen is not None else self._before[-1]))
            self._take(optimizer, new, step)

    @torch.no_grad()
    def _take(self, optimizer: Optimizer, parameters: dict[str, nn.Parameter], step: Taken) -> None:
        scale = getattr(optimizer, "grad_scale", None)
        dtypes = [step.dtype]
        for name, parameter in parameters.items():
            if parameter.grad is None:
                step.missing.append(name)
                step.gradient[name] = torch.zeros(parameter.shape, dtype=torch.float64)
                continue
            dtypes.append(parameter.grad.dtype)
            gradient = whole(parameter.grad)
            step.gradient[name] = gradient / scale.double().cpu() if isinstance(scale, Tensor) else gradient
        step.dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


@contextmanager
def watched(model: nn.Module) -> Iterator[Watch]:
    """Watch everything inside."""
    watch = Watch(model)
    backward, grad = torch.autograd.backward, torch.autograd.grad

    def seen(engine: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            watch.backward(args[0] if args else None)
            return engine(*args, **kwargs)

        return run

    handles = [
        register_optimizer_step_pre_hook(watch.before_step),
        register_optimizer_step_post_hook(watch.after_step),
    ]
    torch.autograd.backward, torch.autograd.grad = seen(backward), seen(grad)  # Tensor.backward calls it by this name
    try:
        yield watch
    finally:
        torch.autograd.backward, torch.autograd.grad = backward, grad
        for handle in handles:
            handle.remove()


def _then(closure: Callable[[], Any], after: Callable[[], None]) -> Callable[[], Any]:
    def both() -> Any:
        result = closure()
        after()
        return result

    return both


def weights_of(model: nn.Module) -> Weights:
    """Float64 copies of all parameters, whole also if they are sharded."""
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    """A float64 copy of all elements. Collective if the tensor is sharded."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return (full.to_dense() if full.is_sparse else full).detach().double().cpu().clone()


def digest(weights: Weights) -> str:
    """What tells two sets of weights apart."""
    found = hashlib.sha256()
    for tensor in weights.values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()
