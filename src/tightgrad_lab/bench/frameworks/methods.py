"""The methods that frameworks share: TightGrad's function, and the formula in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

import tightgrad as tg
from tightgrad.core.protocols import Clipper
from tightgrad_lab.bench.frameworks.framework import Tree

AGC_EPS = 1e-3
OUTPUT_AXIS = 3  # the last one, up to convolutions: where TensorFlow and JAX count outputs
Run = Callable[[Tree, Tree, float], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Args:
        name: of TightGrad's function.
        ours: (gradients, weights, bound) to results: the clipped gradients, or a norm. Leaves its input as it is,
            except that clipping is in place.
        exact: the same in float64.
        bound: from the root mean square of all gradients and their number, one that clips some.
        squares: whether it adds up squares, so that a peer may overflow.
    """

    name: str
    ours: Run
    exact: Run
    bound: Callable[[float, int], float]
    squares: bool = True


def total_norm(grads: Tree, norm_type: float = 2.0) -> Tensor:
    """In float64."""
    norm: Tensor = vector_norm(torch.stack([vector_norm(grad.double(), norm_type) for grad in grads]), norm_type)
    return norm


def _global(norm_type: float, compat: str = "exact") -> Method:
    eps = 1e-6 if compat == "torch" else 0.0

    def ours(grads: Tree, weights: Tree, bound: float) -> list[Tensor]:
        parameters = [_parameter(grad) for grad in grads]
        norm = tg.clip_grad_norm_(parameters, bound, norm_type, compat=compat)
        return [*grads, norm]

    def exact(grads: Tree, weights: Tree, bound: float) -> list[Tensor]:
        norm = total_norm(grads, norm_type)
        factor = torch.clamp(bound / (norm + eps), max=1.0)
        return [*(grad.double() * factor for grad in grads), norm]

    return Method("tg.clip_grad_norm_", ours, exact, lambda rms, numel: 0.3 * rms * numel ** (1 / norm_type))


def _parameter(grad: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty_like(grad))
    parameter.grad = grad
    return parameter


def _clipped(clipper: Clipper, grads: Tree, weights: Tree) -> list[Tensor]:
    named = {str(index): grad for index, grad in enumerate(grads)}
    parameters = {str(index): nn.Parameter(weight) for index, weight in enumerate(weights)}
    with torch.no_grad():
        clipper.clip_(named, parameters, tg.get_total_norm, {})
    return list(grads)


def _exact_each(norm_of: Callable[[Tensor], Tensor]) -> Run:
    def exact(grads: Tree, weights: Tree, bound: float) -> list[Tensor]:
        return [grad.double() * torch.clamp(bound / norm_of(grad.double()), max=1.0) for grad in grads]

    return exact


def _exact_agc(grads: Tree, weights: Tree, bound: float) -> list[Tensor]:
    clipped = []
    for grad, weight in zip(grads, weights, strict=True):
        axes = tuple(range(grad.dim() - 1)) if grad.dim() > 1 else None
        limit = bound * vector_norm(weight.double(), dim=axes, keepdim=True).clamp(min=AGC_EPS)
        clipped.append(grad.double() * torch.clamp(limit / vector_norm(grad.double(), dim=axes, keepdim=True), max=1.0))
    return clipped


def _ours_value(grads: Tree, weights: Tree, bound: float) -> list[Tensor]:
    tg.clip_grad_value_([_parameter(grad) for grad in grads], bound)
    return list(grads)


METHODS: dict[str, Method] = {
    "norm": Method(
        "tg.get_total_norm",
        lambda grads, weights, bound: [tg.get_total_norm(grads)],
        lambda grads, weights, bound: [total_norm(grads)],
        lambda rms, numel: rms,
    ),
    "global_norm": _global(2.0),
    "global_norm_torch": _global(2.0, "torch"),
    "global_norm_1": _global(1.0, "torch"),
    "per_tensor_norm": Method(
        "tg.clip.PerTensorNorm",
        lambda grads, weights, bound: _clipped(tg.clip.PerTensorNorm(bound), grads, weights),
        _exact_each(vector_norm),
        lambda rms, numel: 20 * rms,
    ),
    "value": Method(
        "tg.clip_grad_value_",
        _ours_value,
        lambda grads, weights, bound: [grad.double().clamp(-bound, bound) for grad in grads],
        lambda rms, numel: rms,
        squares=False,
    ),
    "block_rms": Method(
        "tg.clip.BlockRMS",
        lambda grads, weights, bound: _clipped(tg.clip.BlockRMS(bound), grads, weights),
        _exact_each(lambda grad: grad.square().mean().sqrt()),
        lambda rms, numel: 0.7 * rms,
    ),
    "agc": Method(
        "tg.clip.AGC",
        lambda grads, weights, bound: _clipped(tg.clip.AGC(bound, eps=AGC_EPS, unit_axis=OUTPUT_AXIS), grads, weights),
        _exact_agc,
        lambda rms, numel: 0.7,
    ),
}
