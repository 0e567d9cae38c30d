"""Drop-ins for `torch.nn.utils.clip_grad_norm_`, `clip_grad_value_` and `get_total_norm`.

The same signatures, and right where those are wrong: norms are float32 and cannot overflow, a parameter listed twice
counts once, DTensors of several meshes and plain tensors go together, sparse gradients work, `max_norm=inf` only
measures, and every rank gets the same plain norm.
"""

import types
from collections.abc import Iterable

import torch
from torch import Tensor

from tightgrad.clip.norm import plain_norm, total_norm
from tightgrad.clip.one_factor import clip_coefficient, plain_coefficient
from tightgrad.clip.placed import (
    are_distinct_and_plain_on_cpu,
    clamp_,
    distinct,
    scale_distinct_,
    scale_plain_,
)
from tightgrad.core.check import check_choice, check_number
from tightgrad.core.notices import warn

Tensors = Tensor | Iterable[Tensor]


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    compat: str = "exact",
) -> Tensor:
    """Scale gradients so that their norm is at most `max_norm`.

    Collective when gradients are sharded: every rank must call it. On the CPU gradients below the bound are not
    touched.

    Args:
        parameters: one parameter or several; those without a gradient are left out.
        max_norm: the bound, at least 0; inf measures only.
        norm_type: p of the norm, at least 0.
        error_if_nonfinite: raise if the norm is inf or NaN, before anything is changed (waits for the device).
        foreach: taken for torch's sake; the result does not depend on it.
        compat: "exact", or "torch" for max_norm / (norm + 1e-6).

    Returns:
        The norm before clipping: a plain float32 scalar, the same on every rank.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
        ConfigError: a setting is out of its bounds.
    """
    check_number("max_norm", max_norm, low=0.0)
    check_choice("compat", compat, ("exact", "torch"))
    grads = [grad for parameter in _listed(parameters) if (grad := parameter.grad) is not None]
    is_plain = bool(grads) and are_distinct_and_plain_on_cpu(grads)
    if not is_plain:
        grads = distinct(grads)
    norm = plain_norm(grads, float(norm_type)) if is_plain else total_norm(grads, float(norm_type))
    if error_if_nonfinite:
        _check_finite(norm, norm_type)
    if not is_plain:
        scale_distinct_(grads, clip_coefficient(norm, float(max_norm), compat))
    elif (coefficient := plain_coefficient(float(norm), float(max_norm), compat)) != 1.0:
        scale_plain_(grads, torch.tensor(coefficient))
    return norm


@torch.no_grad()
def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Limit every entry of the gradients to [-clip_value, clip_value]. NaN stays NaN.

    Args:
        parameters: one parameter or several; those without a gradient are left out.
        clip_value: the largest absolute value that passes, at least 0.
        foreach: taken for torch's sake; the result does not depend on it.

    Raises:
        ConfigError: `clip_value` is out of its bounds.
    """
    check_number("clip_value", clip_value, low=0.0)
    clamp_([grad for parameter in _listed(parameters) if (grad := parameter.grad) is not None], float(clip_value))


@torch.no_grad()
def get_total_norm(
    tensors: Tensors, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """The norm over all elements of all tensors. Collective when they are sharded: every rank must call it.

    Args:
        tensors: one tensor or several, plain, sparse or DTensor; each storage counts once.
        norm_type: p of the norm, at least 0.
        error_if_nonfinite: raise if the norm is inf or NaN (waits for the device).
        foreach: taken for torch's sake; the result does not depend on it.

    Returns:
        A plain float32 scalar, the same on every rank.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
        ConfigError: `norm_type` is out of its bounds.
    """
    norm = total_norm([tensors] if isinstance(tensors, Tensor) else list(tensors), float(norm_type))
    if error_if_nonfinite:
        _check_finite(norm, norm_type)
    return norm


def _check_finite(norm: Tensor, norm_type: float) -> None:
    if not bool(torch.isfinite(norm)):
        raise RuntimeError(
            f"the gradients' norm of order {norm_type} is {norm.item()}, so they cannot be clipped; nothing was "
            "changed. Skip the step, or set error_if_nonfinite=False to scale by the non-finite norm."
        )


def _listed(parameters: Tensors) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        return [parameters]
    listed = list(parameters)
    if not listed and isinstance(parameters, types.GeneratorType):
        warn("`parameters` is an exhausted generator: nothing is clipped. Pass list(parameters).", stacklevel=3)
    return listed
