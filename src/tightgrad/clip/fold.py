"""Fold: a fused optimizer multiplies by the clip factor while it reads the gradients, which saves a pass over them.

torch's fused Adam, AdamW, SGD and Adagrad divide gradients by `optimizer.grad_scale`, made for loss scaling. Here it
carries 1 / factor. With a GradScaler the two are multiplied by the scaler itself. Afterwards `.grad` holds the clipped
gradients, as without folding.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from tightgrad.clip.one_factor import OneFactorClipper
from tightgrad.clip.placed import is_plain
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Clipper

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


def can_fold(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer takes a factor: fused, and over plain parameters."""
    return isinstance(optimizer, FUSED) and all(
        bool(group.get("fused")) and all(is_plain(parameter) for parameter in group["params"])
        for group in optimizer.param_groups
    )


def folds(clipper: Clipper | None, optimizer: torch.optim.Optimizer) -> bool:
    """Whether `clipper`, as it is set, hands its factor to `optimizer`.

    "auto" folds wherever it can: measured on the CPU, clip and step then take 0.7 (AdamW) to 0.9 (Adagrad) of the time,
    and on any device a read and a write of all gradients less.

    Raises:
        ConfigError: the clipper insists on folding, and the optimizer cannot.
    """
    if not isinstance(clipper, OneFactorClipper) or clipper.fold == "off":
        return False
    possible = can_fold(optimizer)
    if clipper.fold == "on" and not possible:
        raise ConfigError(
            f'fold="on" needs a fused Adam, AdamW, SGD or Adagrad over plain parameters, not this '
            f'{type(optimizer).__name__}; build it with fused=True, or take fold="auto".'
        )
    return possible


@contextmanager
def folded(
    optimizer: torch.optim.Optimizer, coefficient: Tensor | None, found_inf: Tensor | None = None
) -> Iterator[None]:
    """Within, `optimizer.step()` (or `scaler.step(optimizer)`) multiplies gradients by `coefficient`.

    Args:
        optimizer: one that `can_fold`.
        coefficient: float32 scalar; None folds nothing. On the CPU 1 folds nothing.
        found_inf: float32 scalar, 1 to leave parameters and optimizer state as they are.
    """
    if coefficient is None or (found_inf is None and coefficient.device.type == "cpu" and float(coefficient) == 1.0):
        yield
        return
    optimizer.grad_scale = coefficient.reciprocal()  # type: ignore[attr-defined]
    optimizer.found_inf = found_inf if found_inf is not None else torch.zeros_like(coefficient)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in ("grad_scale", "found_inf"):
            with suppress(AttributeError):  # a GradScaler has taken them away
                delattr(optimizer, name)
