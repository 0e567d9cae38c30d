"""What a batch counts."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tightgrad.core.errors import ConfigError

Number = float | int | Tensor
Weight = Callable[[Any], Number | Mapping[str, Number]]


def batch_weights(batch: Any, weight: Weight, losses: tuple[str, ...]) -> dict[str, float]:
    """Call `weight` on a batch, and check what it says.

    Raises:
        ConfigError: a weight is negative or not finite, or the keys are not the names of the losses.
    """
    value = weight(batch)
    if not isinstance(value, Mapping):
        value = dict.fromkeys(losses, value)
    if set(value) != set(losses):
        raise ConfigError(f"weight(batch) has the keys {sorted(value)}, but the plan's losses are {sorted(losses)}.")
    return {name: _checked(value[name]) for name in losses}


def _checked(weight: Number) -> float:
    try:
        value = float(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
        raise ConfigError(
            f"weight(batch) gave a {type(weight).__name__}{shape}; it must give one number, what the batch's loss is "
            "averaged over, such as mask.sum()."
        ) from error
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"a micro-batch weighs {value}; a weight must be finite and at least 0.")
    return value


def one(batch: Any) -> float:
    """Return the weight of a batch where every batch counts the same."""
    return 1.0


def num_samples(batch: Any) -> int:
    """Return the first dimension of the first tensor in the batch, whatever the others are.

    Raises:
        ConfigError: the batch holds no tensor of at least one dimension.
    """
    tensor = _first_tensor(batch)
    if tensor is None:
        raise no_tensor(batch)
    return int(tensor.shape[0])


def no_tensor(batch: Any) -> ConfigError:
    """Make the error about a batch whose samples cannot be counted."""
    return ConfigError(
        f"a batch of type {type(batch).__name__} holds no tensor to count samples by; pass "
        "attach(..., weight=lambda batch: ...) with the number that its loss is averaged over."
    )


def _first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch if batch.dim() else None
    items = batch if isinstance(batch, tuple | list) else batch.values() if isinstance(batch, Mapping) else ()
    return next((tensor for tensor in map(_first_tensor, items) if tensor is not None), None)
