"""Fold: a fused optimizer multiplies by the clip factor while it reads the gradients, which saves a pass over them.

torch's fused Adam, AdamW, SGD and Adagrad divide gradients by `optimizer.grad_scale`, made for loss scaling. Here it
carries 1 / factor. With a GradScaler the two are multiplied by the scaler itself. Afterwards `.grad` holds the clipped
gradients, as without folding: step post-hooks see what they would see after a multiplication.

Only torch's own step reads that attribute. Where anything else may look at the gradients before it (`own_step`), they
are changed in place. That is decided anew at each step, since hooks and schedulers come and go, and on each rank for
itself: a hook on one rank only must not make its weights drift, so there the gradients are divided as the kernel does,
to the same bits. In float32, that is; of bfloat16 the kernel would not round the quotient, so those are not folded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeAlias

import torch
from torch import Tensor

from tightgrad.clip.dtensor import grouped, is_one, scale_
from tightgrad.clip.own_step import CHANNELS, reader_of_gradients
from tightgrad.core.errors import ConfigError
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import Grads

DEVICES = ("cpu", "cuda")
"""Where fused kernels are known to take a factor; torch's for Apple GPUs refuse one."""

Fold: TypeAlias = Callable[[Grads, Tensor], Sequence[Tensor | None]]
"""Takes gradients by name and their factor, and returns what each optimizer still has to multiply by, None where its
gradients are final; empty if all are.
"""


def multiplied(grads: Grads, coefficient: Tensor) -> Sequence[Tensor | None]:
    """Multiply the gradients in place: the `Fold` that never hands a factor on."""
    scale_(grads.values(), coefficient)
    return ()


def folding(
    clipper: Clipper | None,
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Mapping[str, torch.nn.Parameter],
) -> Fold:
    """Choose how `clipper`, as it is set, gives its factor to the optimizers, each of which may fold or not.

    "auto" and "on" fold wherever it can, asked at each step: measured on the CPU, clip and step then take 0.7 (AdamW)
    to 0.9 (Adagrad) of the time, and on any device a read and a write of all gradients less.

    Args:
        clipper: of the plan; None clips nothing.
        optimizers: of the pipeline, each with parameters of its own.
        parameters: whose gradients are clipped, by name.

    Raises:
        ConfigError: the clipper insists on folding, and the optimizer cannot as it is now. At a later step gradients
            that cannot be folded are changed in place, which is right as well.
    """
    if clipper is None or clipper.fold == "off":
        return multiplied
    for optimizer in optimizers if clipper.fold == "on" else ():
        _check_can_fold(optimizer)

    def fold(grads: Grads, coefficient: Tensor) -> Sequence[Tensor | None]:
        if len(optimizers) == 1:
            return [_fold_into(optimizers[0], grads.values(), coefficient)]
        held = [held_by(optimizer) for optimizer in optimizers]
        parts = [[grad for name, grad in grads.items() if id(parameters[name]) in one] for one in held]
        return [_fold_into(optimizer, part, coefficient) for optimizer, part in zip(optimizers, parts, strict=True)]

    return fold


def held_by(optimizer: torch.optim.Optimizer) -> frozenset[int]:
    """Return the identities of the parameters in the optimizer's groups."""
    return frozenset(id(parameter) for group in optimizer.param_groups for parameter in group["params"])


def _fold_into(optimizer: torch.optim.Optimizer, grads: Iterable[Tensor], coefficient: Tensor) -> Tensor | None:
    """Return the factor that is left to the optimizer; None where the gradients were changed in place."""
    if no_kernel(optimizer) is not None:
        scale_(grads, coefficient)
    elif reader_of_gradients(optimizer) is not None:
        divide_(grads, coefficient)
    else:
        return coefficient
    return None


def _check_can_fold(optimizer: torch.optim.Optimizer) -> None:
    if reason := obstacle(optimizer):
        raise ConfigError(
            f'fold="on" needs torch\'s own fused Adam, AdamW, SGD or Adagrad over plain float32 parameters, and '
            f"nothing that looks at the gradients before its step, but {reason}. Build the optimizer with fused=True, "
            'or take fold="auto", which changes the gradients in place where it cannot fold.'
        )


def obstacle(optimizer: torch.optim.Optimizer) -> str | None:
    """Name the reason why the optimizer cannot be handed a factor, as it is now; return None if it can."""
    return reader_of_gradients(optimizer) or no_kernel(optimizer)


def can_fold(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the optimizer can be handed a factor, as it is now."""
    return obstacle(optimizer) is None


def no_kernel(optimizer: torch.optim.Optimizer) -> str | None:
    """Name the reason why a fused kernel would not take a factor; return None if it does. The same on every rank."""
    for group in optimizer.param_groups:
        if not group.get("fused"):
            return f"this {type(optimizer).__name__} is not fused"
        for parameter in group["params"]:
            if is_dtensor(parameter):
                return "a parameter is a DTensor"
            if parameter.dtype is not torch.float32 or parameter.device.type not in DEVICES:
                return f"a parameter is {parameter.dtype} on {parameter.device.type}"
    return None


def divide_(grads: Iterable[Tensor], coefficient: Tensor) -> None:
    """Multiply plain float32 gradients by a factor to the bits of a fused kernel, which divides by its reciprocal."""
    if is_one(coefficient):
        return
    divisor = coefficient.reciprocal().float()
    for (_, device, _), values in grouped(grads).items():
        torch._foreach_div_(values, divisor.to(device, non_blocking=True))


@contextmanager
def folded(
    optimizer: torch.optim.Optimizer, coefficient: Tensor | None, found_inf: Tensor | None = None
) -> Iterator[None]:
    """Let `optimizer.step()` (or `scaler.step(optimizer)`) multiply gradients by `coefficient` within the block.

    Args:
        optimizer: one that `can_fold`.
        coefficient: a scalar; None folds nothing. On the CPU 1 folds nothing.
        found_inf: float32 scalar, 1 to leave parameters and optimizer state as they are.
    """
    if coefficient is None or (found_inf is None and is_one(coefficient)):
        yield
        return
    # The kernels read float32.
    scale = coefficient.reciprocal().float()
    optimizer.grad_scale = scale  # type: ignore[attr-defined]
    optimizer.found_inf = found_inf if found_inf is not None else torch.zeros_like(scale)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in CHANNELS:
            with suppress(AttributeError):  # a GradScaler has taken them away
                delattr(optimizer, name)
