"""Is the loss of a micro-batch the weighted mean of its halves' losses? If not, no accumulation gives that of a batch.

Only what does not depend on the order of the samples is judged: a sequence that is cut along time is no batch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Losses = Callable[[list[Any]], list[tuple[float, float]]]
SAME = 1e-6
LEAST = 4
"""Samples of a micro-batch that can be told: two in each half."""


def not_additive(losses: Losses, batches: list[Any]) -> str:
    """What differs, in words; empty if nothing does, or if nothing can be said.

    Args:
        losses: gives mean loss and weight of micro-batches, the same each time.
        batches: micro-batches; the first that can be cut is looked at.
    """
    for batch in batches:
        size = samples(batch)
        if size < LEAST:
            continue
        half = size // 2
        try:
            whole, turned, first, second = losses(
                [
                    batch,
                    _select(batch, size, torch.arange(size).roll(half).tolist()),
                    _select(batch, size, list(range(half))),
                    _select(batch, size, list(range(half, size))),
                ]
            )
        except Exception:  # half of this batch is no batch, and so nothing is known
            return ""
        parts = first[0] * first[1] + second[0] * second[1]
        weight = first[1] + second[1]
        if not (weight and whole[1] and math.isclose(whole[0], turned[0], rel_tol=SAME, abs_tol=SAME)):
            return ""
        if math.isclose(whole[0], parts / weight, rel_tol=SAME, abs_tol=SAME):
            return ""
        return f"{whole[0]:.4g} for {size} samples, {parts / weight:.4g} from their two halves"
    return ""


def samples(batch: Any) -> int:
    """The length that all tensors of a batch share in their first dimension; 0 if there is none."""
    tensors = _tensors(batch)
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
    return sizes.pop() if len(sizes) == 1 and any(tensor.ndim > 1 for tensor in tensors) else 0


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple | list) else []
    return [tensor for value in values for tensor in _tensors(value)]


def _select(batch: Any, size: int, places: list[int]) -> Any:
    if isinstance(batch, Tensor):
        return batch[places]
    if isinstance(batch, dict):
        return {key: _select(value, size, places) for key, value in batch.items()}
    if isinstance(batch, tuple | list) and batch:
        chosen = [_select(value, size, places) for value in batch]
        return type(batch)(*chosen) if hasattr(batch, "_fields") else type(batch)(chosen)
    return batch
