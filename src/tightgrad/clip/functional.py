"""Drop-ins for `torch.nn.utils.clip_grad_norm_`, `clip_grad_value_` and `get_total_norm`.

The same signatures, and right where those are wrong: norms are float32 (of float64 gradients float64) and cannot
overflow on their way, a parameter listed twice counts once, DTensors of several meshes (tensor-parallel ones too) and
plain tensors go together, sparse and complex gradients work, `max_norm=inf` only measures, and every rank gets the same
plain norm.
"""

import math
import types
from collections.abc import Iterable

import torch
from torch import Tensor

from tightgrad.clip.dtensor import clamp_, grouped, is_one, scale_groups_
from tightgrad.clip.norm import exact_norm, narrowed, norm_of_groups
from tightgrad.clip.one_factor import clip_coefficient
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

    Collective when gradients are DTensors: every rank must call it. On the CPU gradients below the bound are not
    touched.

    Args:
        parameters: one parameter or several; those without a gradient are left out. A complex entry counts by its
            modulus.
        max_norm: the bound, at least 0; inf measures only.
        norm_type: p of the norm, at least 0.
        error_if_nonfinite: raise if the norm is inf or NaN, before anything is changed (waits for the device).
        foreach: taken for torch's sake; the result does not depend on it.
        compat: "exact", or "torch" for max_norm / (norm + 1e-6).

    Returns:
        The norm before clipping, the same on every rank: a plain scalar, float64 if any gradient is float64 or
        complex128, else float32. Of float32 gradients it may be inf although they are finite (it is above 3.4e38);
        they are clipped right all the same.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
        ConfigError: a setting is out of its bounds.
        UnsupportedError: a DTensor whose placement is not Replicate, Shard, _StridedShard or `Partial("sum")`.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> tg.clip_grad_norm_([weight], max_norm=1.0)
        tensor(5.)
        >>> [round(value, 4) for value in weight.grad.tolist()]
        [0.6, 0.8]
    """
    check_number("max_norm", max_norm, low=0.0)
    check_choice("compat", compat, ("exact", "torch"))
    grads = [grad for parameter in _listed(parameters) if (grad := parameter.grad) is not None]
    groups = grouped(grads)
    norm = norm_of_groups(groups, float(norm_type))
    if error_if_nonfinite:
        _check_finite(norm, norm_type)
    if not is_one(coefficient := clip_coefficient(norm, float(max_norm), compat)):
        scale_groups_(groups, coefficient)
    return narrowed(norm, grads)


@torch.no_grad()
def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Limit every entry of the gradients to [-clip_value, clip_value]. NaN stays NaN.

    Of a complex entry, which torch's function refuses, the real and the imaginary part are limited each, as if the
    parameter were `torch.view_as_real` of itself. Collective where a gradient is a DTensor that is `Partial("sum")`.

    Args:
        parameters: one parameter or several; those without a gradient are left out.
        clip_value: the largest absolute value that passes, at least 0.
        foreach: taken for torch's sake; the result does not depend on it.

    Raises:
        ConfigError: `clip_value` is out of its bounds.
        UnsupportedError: a DTensor whose placement is not Replicate, Shard, _StridedShard or `Partial("sum")`.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([0.3, -4.0])
        >>> tg.clip_grad_value_([weight], clip_value=1.0)
        >>> weight.grad
        tensor([ 0.3000, -1.0000])
    """
    check_number("clip_value", clip_value, low=0.0)
    clamp_([grad for parameter in _listed(parameters) if (grad := parameter.grad) is not None], float(clip_value))


@torch.no_grad()
def get_total_norm(
    tensors: Tensors, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
) -> Tensor:
    """Return the norm over all elements of all tensors. Collective when they are DTensors: every rank must call it.

    Args:
        tensors: one tensor or several, plain, sparse or DTensor; each storage counts once, and a complex entry by its
            modulus.
        norm_type: p of the norm, at least 0.
        error_if_nonfinite: raise if the norm is inf or NaN (waits for the device).
        foreach: taken for torch's sake; the result does not depend on it.

    Returns:
        A plain scalar, the same on every rank: float64 if any tensor is float64 or complex128, else float32.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
        ConfigError: `norm_type` is out of its bounds.
        UnsupportedError: a DTensor whose placement is not Replicate, Shard, _StridedShard or `Partial("sum")`.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> tg.get_total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
        tensor(5.)
    """
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    norm = exact_norm(listed, float(norm_type))
    if error_if_nonfinite:
        _check_finite(norm, norm_type)
    return narrowed(norm, listed)


def _check_finite(norm: Tensor, norm_type: float) -> None:
    if not math.isfinite(norm):
        raise RuntimeError(
            f"the gradients' norm of order {norm_type} is {float(norm)}, so they cannot be clipped; nothing was "
            "changed. Skip the step, or set error_if_nonfinite=False to scale by the non-finite norm."
        )


def _listed(parameters: Tensors) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        return [parameters]
    listed = list(parameters)
    if not listed and isinstance(parameters, types.GeneratorType):
        warn("`parameters` is an exhausted generator: nothing is clipped. Pass list(parameters).", stacklevel=3)
    return listed
