"""One batch into pieces along the first dimension."""

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tightgrad.accumulate.weights import num_samples
from tightgrad.core.errors import ConfigError


def split_batch(batch: Any, pieces: int) -> list[Any]:
    """Cut every tensor of a batch (a tensor, or mappings, tuples and lists of them) into as even pieces as possible.

    Entries that are not tensors go into every piece. A batch of fewer samples than `pieces` gives fewer pieces.

    Raises:
        ConfigError: the tensors differ in their first dimension.
    """
    size = num_samples(batch)
    count = max(1, min(pieces, size))
    edges = [size * index // count for index in range(count + 1)]
    return [_slice(batch, start, stop, size) for start, stop in itertools.pairwise(edges)]


def _slice(value: Any, start: int, stop: int, size: int) -> Any:
    if isinstance(value, Tensor):
        if value.dim() == 0 or value.shape[0] != size:
            raise ConfigError(
                f"a batch cannot be split: one tensor has {size} samples, another the shape {tuple(value.shape)}."
            )
        return value[start:stop]
    if isinstance(value, Mapping):
        return {key: _slice(item, start, stop, size) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_slice(item, start, stop, size) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_slice(item, start, stop, size) for item in value)
    return value
