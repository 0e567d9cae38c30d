"""Gradients in `parameter.grad`, out and in again."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tightgrad.core.types import Grads


def copy_grads(parameters: Mapping[str, nn.Parameter]) -> Grads:
    """Copies of the gradients that there are."""
    return {name: p.grad.detach().clone() for name, p in parameters.items() if p.grad is not None}


def each_grad(parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor | None]]:
    """Name and gradient of each parameter."""
    for name, parameter in parameters.items():
        yield name, parameter.grad


def put_grads(parameters: Mapping[str, nn.Parameter], grads: Grads) -> None:
    """Make `grads` the parameters' gradients; the other parameters have none."""
    for name, parameter in parameters.items():
        parameter.grad = grads[name].clone() if name in grads else None


def scale_grads_(parameters: Mapping[str, nn.Parameter], factor: float) -> None:
    """Multiply the gradients that there are, in place."""
    for parameter in parameters.values():
        if parameter.grad is not None:
            parameter.grad.detach().mul_(factor)


@contextmanager
def adding_zero(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Let a backward run, collectives and all, that adds exactly 0 to every leaf, also where it computes NaN."""
    handles = [leaf.register_hook(torch.zeros_like) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
