"""Writes down losses, backwards, clips and steps as they happen."""

import hashlib
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from tightgrad_lab.audit.script.arithmetic import Arithmetic
from tightgrad_lab.audit.script.bystanders import Bystanders, names
from tightgrad_lab.audit.script.losses import call_of
from tightgrad_lab.audit.script.places import caller
from tightgrad_lab.audit.script.records import Backward, Clip, Ledger, Samples, Step
from tightgrad_lab.audit.script.sequences import Facts
from tightgrad_lab.audit.terms import terms_of

SAMPLES = 512
"""Elements of a parameter's gradient that are kept, evenly spread: what is linear in it holds for each of them."""
LOOKS = 4
"""Backwards whose graph is searched for parameters, and steps after which copies of the weights are looked for."""


class Enough(BaseException):
    """As many steps as were asked for have been seen. No Exception, so that a script does not catch it."""


class _Token:
    """Lives as long as the graph that it is fastened to."""


class Recorder:
    """One rank's ledger, and what fills it.

    Args:
        ledger: empty.
        steps: how many to see.
        progress: told after each step.

    Attributes:
        end: ends this process, with its ledger written.
        elsewhere: ends a process that the script has forked, and leaves word of it.
        batches: length of the loader that was started last.
        arithmetic: what is computed between model and backward.
    """

    def __init__(self, ledger: Ledger, steps: int, progress: Callable[[int], None]) -> None:
        self.ledger = ledger
        self.epoch = 0
        self._wanted = steps
        self._progress = progress
        self._parameters: dict[int, tuple[int, Tensor]] = {}
        self._optimizers: dict[int, int] = {}
        self._keep: list[Any] = []
        self._ordinals: dict[str, int] = {}
        self._running = 0
        self._in_step = 0
        self._enough: tuple[int, int, int] | None = None
        self._versions: list[int] = []
        self._frozen: dict[int, bytes] = {}
        self._unscaled: dict[int, float] = {}
        self.end: Callable[[], None] = lambda: None
        self.elsewhere: Callable[[], None] = lambda: None
        self.batches: int | None = None
        self.arithmetic = Arithmetic()
        self._facts = Facts()
        self._bystanders = Bystanders()
        self._graphs: list[weakref.ref[_Token]] = []

    # losses

    def look(self, asked: dict[str, Any]) -> None:
        """Remember what the arguments of a loss say of its targets."""
        self._facts = self.arithmetic.sequences.facts(asked.get("target"), asked.get("ignore_index"))

    def loss_seen(self, function: str, each: Tensor, valid: Tensor | None, own: bool) -> None:
        """Hook a loss that was computed target by target."""
        site = caller()
        ordinal = self._ordinals[site] = self._ordinals.get(site, -1) + 1
        valid, facts = None if valid is None else valid.detach(), self._facts

        def hook(coefficient: Tensor) -> None:
            if self._running and self.ledger.backwards:
                call = call_of(site, function, ordinal, coefficient.detach(), valid, own, facts)
                self.ledger.backwards[-1].calls.append(call)

        each.register_hook(hook)

    # backward

    def around_backward(self, engine: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `torch.autograd.backward`."""

        def backward(*args: Any, **kwargs: Any) -> Any:
            if self._running:  # activation checkpointing goes backward inside a backward
                return engine(*args, **kwargs)
            with self._recorded(args[0] if args else kwargs.get("tensors")):
                return engine(*args, **kwargs)

        return backward

    def around_grad(self, engine: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `torch.autograd.grad`, as far as it is asked for gradients of parameters."""

        def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            chosen = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            known = [self._parameters.get(id(one), (-1, one))[0] for one in chosen]
            if self._running or not any(number >= 0 for number in known):
                found = engine(outputs, chosen, *args, **kwargs)
                if not self._running:
                    self.arithmetic.is_slope(found)
                return found
            with self._recorded(outputs) as record:
                found = engine(outputs, chosen, *args, **kwargs)
            pairs = [(n, g) for n, g in zip(known, found, strict=True) if n >= 0 and isinstance(g, Tensor)]
            record.gradient = {number: sampled(gradient) for number, gradient in pairs}
            record.apart = True
            return found

        return grad

    @contextmanager
    def _recorded(self, roots: Any) -> Iterator[Backward]:
        root = roots if isinstance(roots, Tensor) else None
        scale = getattr(root, "_tightgrad_scale", 1.0)
        value = float(root.detach()) / scale if root is not None and root.numel() == 1 else float("nan")
        record = Backward(caller(4), value, scale, self.epoch, in_step=bool(self._in_step))
        record.undefined = root is not None and root.numel() == 1 and value != value
        record.moved = self._has_moved()
        record.fresh = not any(_has_gradient(parameter) for _, parameter in self._parameters.values())
        record.copied = self._bystanders.copies_moved()
        record.divisors = tuple(self.arithmetic.divisors)
        record.terms = tuple(sorted(terms_of(root)))
        record.dropout = (self.arithmetic.dropout[0], self.arithmetic.dropout[1])
        self.arithmetic.forget()
        self._look_at(roots)
        self.ledger.backwards.append(record)
        before = collectives()
        self._running += 1
        try:
            yield record
        finally:
            self._running -= 1
            self._ordinals.clear()
            self.ledger.collectives = collectives()
            record.collectives = self.ledger.collectives - before

    def _look_at(self, roots: Any) -> None:
        """Search the graph for parameters that no optimizer holds, and mark it, to see how long it lives."""
        if len(self.ledger.backwards) < LOOKS and not self.ledger.sharded:
            self._bystanders.reach(roots, self._parameters)
        if isinstance(roots, Tensor) and roots.grad_fn is not None:
            token = _Token()
            roots.grad_fn.metadata["tightgrad"] = token  # type: ignore[index]  # a dict, whatever its stub says
            self._graphs.append(weakref.ref(token))

    def finish(self) -> None:
        """Nothing more is to be seen."""
        ledger = self.ledger
        if self._enough:
            steps, backwards, clips = self._enough
            del ledger.steps[steps:], ledger.backwards[backwards:], ledger.clips[clips:]
        ledger.constants, ledger.in_place = self.arithmetic.constants, self.arithmetic.in_place.places
        window = ledger.steps[-1].backwards - ledger.steps[-2].backwards if len(ledger.steps) > 1 else 1
        past = self._graphs[: -2 * max(1, window)]
        ledger.graphs = (sum(one() is not None for one in past), len(past))
        if not ledger.sharded:
            ledger.unheld = self._bystanders.unheld(self._parameters)
        if any(step.missing for step in ledger.steps):
            known = names(self._parameters)
            ledger.names = {number: known[key] for key, (number, _) in self._parameters.items()}

    def _has_moved(self) -> bool:
        """Whether weights were changed by hand since the last backward or step."""
        now = [parameter._version for _, parameter in self._parameters.values()]
        moved = len(now) == len(self._versions) and now != self._versions
        self._versions = now
        return moved

    # optimizers

    def hold(self, optimizer: Optimizer) -> None:
        """Hook all parameters of an optimizer that are not yet hooked."""
        self._optimizers.setdefault(id(optimizer), len(self._optimizers))
        self._keep.append(optimizer)
        for parameter in _held(optimizer):
            if id(parameter) in self._parameters:
                continue
            number = len(self._parameters)
            self._parameters[id(parameter)] = (number, parameter)
            if isinstance(parameter, DTensor) or hasattr(parameter, "_local_shape"):
                self.ledger.sharded = True
            elif parameter.is_leaf and parameter.is_floating_point():
                required = parameter.requires_grad
                parameter.requires_grad_(True).register_hook(self._added(number))
                parameter.requires_grad_(required)

    def _added(self, number: int) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            if self._running and self.ledger.backwards:
                gradients = self.ledger.backwards[-1].gradient
                found = sampled(gradient)
                gradients[number] = gradients[number] + found if number in gradients else found

        return hook

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write down what is taken, now or once the closure has run for the first time."""
        self.elsewhere()
        self._in_step += 1
        if self._in_step > 1:  # a wrapper's inner optimizer: the wrapper was seen
            return None
        self.hold(optimizer)
        self.ledger.steps.append(self._step(optimizer))
        self._frozen = self._frozen_now(optimizer)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if not callable(closure):
            return None
        evaluated = 0

        def watched() -> Any:
            nonlocal evaluated
            result = closure()
            evaluated += 1
            if evaluated == 1:
                self.ledger.steps[-1] = self._step(optimizer)
            self.ledger.steps[-1].closure = evaluated > 1
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched}
        return (args[0], watched, *args[2:]), kwargs

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Write down what came of it; stop the script if that was the last one."""
        self._in_step -= 1
        if self._in_step:
            return
        self.ledger.collectives = max(self.ledger.collectives, collectives())
        step = self.ledger.steps[-1]
        before, step.after = step.after, self._digest(optimizer)
        step.moved = before != step.after
        step.frozen = sum(one != self._frozen.get(key) for key, one in self._frozen_now(optimizer).items())
        if len(self.ledger.steps) <= LOOKS and not self.ledger.sharded:
            self._bystanders.find_copies(self._parameters)
        self._versions = [parameter._version for _, parameter in self._parameters.values()]
        self.count()

    def _frozen_now(self, optimizer: Optimizer) -> dict[int, bytes]:
        return {id(one): sampled(one).tobytes() for one in _held(optimizer) if not one.requires_grad}

    def skipped(self, optimizer: Optimizer) -> None:
        """A GradScaler has left a step out, since gradients overflowed."""
        self.hold(optimizer)
        self.ledger.steps.append(self._step(optimizer, skipped=True))
        self.count()

    def count(self) -> None:
        """Stop after the last step that was asked for."""
        per_optimizer = [0] * len(self._optimizers)
        for step in self.ledger.steps:
            per_optimizer[step.optimizer] += 1
        self._progress(max(per_optimizer))
        if max(per_optimizer) >= self._wanted + sum(step.skipped for step in self.ledger.steps):
            if self._enough:  # the script has caught the first one
                self.end()
            self._enough = (len(self.ledger.steps), len(self.ledger.backwards), len(self.ledger.clips))
            raise Enough

    def _step(self, optimizer: Optimizer, *, skipped: bool = False) -> Step:
        scale = getattr(optimizer, "grad_scale", None)
        factor = 1 / float(scale) if isinstance(scale, Tensor) else 1.0
        taken: Samples = {}
        eps, missing, numbers = torch.finfo(torch.float32).eps, 0, []
        for parameter in _held(optimizer):
            if not parameter.requires_grad:
                continue
            number = self._parameters[id(parameter)][0]
            numbers.append(number)
            if parameter.grad is None:
                missing += 1
                continue
            eps = max(eps, torch.finfo(parameter.grad.dtype).eps)
            taken[number] = sampled(parameter.grad) * factor
        kind = type(optimizer).__name__
        number = self._optimizers[id(optimizer)]
        return Step(
            number,
            kind,
            caller(),
            tuple(numbers),
            taken,
            missing,
            len(self.ledger.backwards),
            eps,
            after=self._digest(optimizer),
            skipped=skipped,
            unscaled=1 / factor if factor != 1 else self._unscaled.get(id(optimizer), 1.0),
        )

    def _digest(self, optimizer: Optimizer) -> str:
        found = hashlib.sha256()
        for parameter in _held(optimizer):
            found.update(sampled(parameter.detach()).tobytes())
        return found.hexdigest()

    # clipping and loss scale

    def around_clip(self, clip: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap `clip_grad_norm_`."""

        def clip_grad_norm_(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Tensor:
            chosen = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            norm = clip(chosen, max_norm, *args, **kwargs)
            self._clipped(chosen, max_norm, norm.full_tensor() if isinstance(norm, DTensor) else norm)
            return norm

        return clip_grad_norm_

    def around_value_clip(self, clip: Callable[..., None]) -> Callable[..., None]:
        """Wrap `clip_grad_value_`."""

        def clip_grad_value_(parameters: Any, clip_value: float, *args: Any, **kwargs: Any) -> None:
            chosen = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            largest = max((float(one.grad.abs().max()) for one in chosen if one.grad is not None), default=0.0)
            clip(chosen, clip_value, *args, **kwargs)
            self._clipped(chosen, clip_value, largest, by_value=True)

        return clip_grad_value_

    def _clipped(self, chosen: list[Tensor], bound: float, norm: Tensor | float, *, by_value: bool = False) -> None:
        known = tuple(self._parameters[id(one)][0] for one in chosen if id(one) in self._parameters)
        ledger = self.ledger
        before = len(ledger.steps) - bool(self._in_step)  # a closure clips before the step that calls it
        since = ledger.steps[before - 1].backwards if before else 0
        scaled = any(backward.scale != 1.0 for backward in ledger.backwards[since:])
        scaled &= not any(self._numbers(one) & set(known) for one in self._unscaled)
        seen = (len(ledger.backwards), before)
        ledger.clips.append(Clip(caller(), known, float(bound), float(norm), *seen, scaled, by_value))

    def _numbers(self, optimizer: int) -> set[int]:
        held = next((one for one in self._keep if id(one) == optimizer), None)
        return set() if held is None else {self._parameters[id(one)][0] for one in _held(held)}

    def unscaled(self, optimizer: Optimizer, scale: float) -> None:
        """A GradScaler has divided an optimizer's gradients by its scale."""
        self.hold(optimizer)
        self._unscaled[id(optimizer)] = scale

    def rescaled(self) -> None:
        """A GradScaler has been updated: a new window begins."""
        self._unscaled.clear()


def _has_gradient(parameter: Tensor) -> bool:
    gradient = parameter.grad
    return gradient is not None and (gradient.is_sparse or isinstance(gradient, DTensor) or bool(gradient.any()))


def _held(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def sampled(tensor: Tensor) -> Any:
    """Some elements, evenly spread, in float64."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    flat = (local.to_dense() if local.is_sparse else local).detach().reshape(-1)
    step = max(1, flat.numel() // SAMPLES)
    return flat[::step][:SAMPLES].double().numpy().copy() if flat.numel() else np.zeros(0)


def collectives() -> int:
    """How many collectives this rank has begun, DDP's own included."""
    if not dist.is_initialized():
        return 0
    # torch 2.9 to 2.14: the number by which gloo and NCCL tell that ranks have parted; DDP's are counted in C++ alone.
    groups: Any = dist.distributed_c10d._world.pg_map
    return int(sum(group._get_sequence_number_for_group() for group in groups))
