"""Gradients in `parameter.grad`, out and in again."""

from collections.abc import Mapping

from torch import nn

from tightgrad.core.types import Grads


def copy_grads(parameters: Mapping[str, nn.Parameter]) -> Grads:
    """Copies of the gradients that there are."""
    return {name: p.grad.detach().clone() for name, p in parameters.items() if p.grad is not None}


def put_grads(parameters: Mapping[str, nn.Parameter], grads: Grads) -> None:
    """Make `grads` the parameters' gradients; the other parameters have none."""
    for name, parameter in parameters.items():
        parameter.grad = grads[name].clone() if name in grads else None
