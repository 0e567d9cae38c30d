"""What an audited file's functions give back, or in which words they do not."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tightgrad_lab.audit.specification import Specification
from tightgrad_lab.errors import ArgumentError

PAIR = "loss(model, batch) must return the mean loss as a tensor of one number, and its weight"
_WEIGHT = "Return the number of targets that count."


def batches_of(specification: Specification, count: int, ragged: bool) -> list[Any]:
    """The micro-batches that `make_batches` gives.

    Raises:
        ArgumentError: they are none, or not as many as asked for.
    """
    found = specification.make_batches(count, ragged)
    if not isinstance(found, Iterable):
        raise ArgumentError(f"make_batches({count}, {ragged}) returned {_kind(found)}; return {count} micro-batches.")
    batches = list(found)
    if len(batches) != count:
        raise ArgumentError(f"make_batches({count}, ...) gave {len(batches)} micro-batches; it must give {count}.")
    return batches


def model_of(specification: Specification) -> nn.Module:
    """The model that `build_model` gives.

    Raises:
        ArgumentError: it is none, or has nothing that trains.
    """
    model: Any = specification.build_model()
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"build_model() returned {_kind(model)}; return the model alone, a torch.nn.Module.")
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ArgumentError(
            "build_model() returned lazy layers, which have no weights yet: pass a micro-batch through the model first."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ArgumentError("build_model() returned a model without a parameter that requires a gradient.")
    return model


def loss_of(specification: Specification, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    """The mean loss of a micro-batch and its weight.

    Raises:
        ArgumentError: it is not such a pair.
    """
    found: Any = specification.loss(model, batch)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise ArgumentError(f"{PAIR}; it returned {_kind(found)}. Write return loss, number_of_targets.")
    loss, weight = found
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ArgumentError(f"{PAIR}; the loss that it returned is {_kind(loss)}. Take the mean, without item().")
    if not isinstance(weight, int | float | Tensor) or (isinstance(weight, Tensor) and weight.numel() != 1):
        raise ArgumentError(f"{PAIR}; the weight that it returned is {_kind(weight)}. {_WEIGHT}")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ArgumentError(f"{PAIR}; the loss that it returned has no gradient: leave out detach and no_grad.")
    number = float(weight)
    if not (math.isfinite(number) and number >= 0):
        raise ArgumentError(f"{PAIR}; the weight that it returned is {number:g}. {_WEIGHT}")
    return loss.reshape(()), number


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.40}"
