"""Is the loss of a micro-batch the weighted mean of its halves' losses? If not, no accumulation gives that of a batch.

Only what does not depend on the order of the samples is judged: a sequence that is cut along time is no batch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Loss = tuple[float, float]
"""Of a micro-batch, with its weight."""
Losses = Callable[[list[Any]], list[Loss]]
SAME = 1e-6
LEAST = 4
"""Samples of a micro-batch that can be told: two in each half."""


def not_additive(losses: Losses, batches: list[Any]) -> str:
    """What differs, in words; empty if nothing does, or if nothing can be said.

    Args:
        losses: gives mean loss and weight of micro-batches, the same each time.
        batches: micro-batches; the first that can be cut is looked at.
    """
    found = _halves(losses, batches)
    if found is None:
        return ""
    size, whole, first, second = found
    parts = first[0] * first[1] + second[0] * second[1]
    weight = first[1] + second[1]
    if not weight or _same(whole[0], parts / weight):
        return ""
    return f"{whole[0]:.4g} for {size} samples, {parts / weight:.4g} from their two halves"


def is_sum(losses: Losses, batches: list[Any]) -> bool:
    """Whether the loss of a micro-batch is the sum of its halves', and not their mean."""
    found = _halves(losses, batches)
    if found is None:
        return False
    _, whole, first, second = found
    return _same(whole[0], first[0] + second[0]) and _same(whole[1], first[1] + second[1]) and not _same(whole[0], 0.0)


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=SAME, abs_tol=SAME)


def _halves(losses: Losses, batches: list[Any]) -> tuple[int, Loss, Loss, Loss] | None:
    """Samples of a micro-batch, and the losses of it and of its halves; None if it has none that can be told."""
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
            return None
        return (size, whole, first, second) if whole[1] and _same(whole[0], turned[0]) else None
    return None


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
