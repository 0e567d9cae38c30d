"""What a batch is made of: tensors and other entries, in mappings, tuples and lists."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Array = Tensor | np.ndarray[Any, Any]
_CONSTANTS = (Number, np.generic, str, bytes, type(None), torch.dtype, torch.device)
_SEVERAL = 3  # a pair of fields of one kind is common: noisy and clean images
_TOKEN_FIELDS = 4  # token ids, attention mask, token types, labels


def is_array(value: Any) -> bool:
    """Tell whether this is a tensor or a NumPy array."""
    return isinstance(value, Tensor | np.ndarray)


def is_constant(value: Any) -> bool:
    """Tell whether this is a single number, text or nothing."""
    return isinstance(value, _CONSTANTS) or (is_array(value) and value.ndim == 0)


def is_sequence(value: Any) -> bool:
    """Tell whether this is a plain list or tuple, and no shape or tuple with names."""
    return type(value) in (list, tuple)


def named_entries(value: Any) -> dict[Any, Any] | None:
    """Return the entries of a mapping or a named tuple; None for anything else."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields") and not isinstance(value, PackedSequence):
        return dict(zip(value._fields, value, strict=True))
    return None


def entry_path(path: str, owner: Any, key: Any) -> str:
    """Return how one writes an entry of `owner` in Python."""
    if isinstance(owner, tuple) and hasattr(owner, "_fields"):
        return f"{path}.{key}"
    return f"{path}[{json.dumps(key) if isinstance(key, str) else repr(key)}]"


def entries(value: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, key and value of each entry of a mapping, named tuple, list or tuple; nothing for anything else."""
    named = named_entries(value)
    if named is None and is_sequence(value):
        named = dict(enumerate(value))
    for key, item in (named or {}).items():
        yield entry_path(path, value, key), key, item


def odd_kind(value: Any) -> str | None:
    """Name a container whose samples cannot be told from outside; None for others."""
    if isinstance(value, PackedSequence):
        return "PackedSequence"
    if isinstance(value, Tensor) and (value.is_nested or value.layout is not torch.strided):
        return "nested tensor" if value.is_nested else f"tensor of the layout {value.layout}"
    if is_dataclass(value) and not isinstance(value, type | Mapping):
        return f"dataclass {type(value).__name__}"
    return None


def looks_like_samples(batch: Any) -> bool:
    """Tell whether a list or tuple could be a list of samples as well as a batch's fields.

    It has three or more entries of one kind then.
    """
    if not is_sequence(batch) or len(batch) < _SEVERAL:
        return False
    first = batch[0]
    if isinstance(first, Mapping):
        return all(isinstance(item, Mapping) and item.keys() == first.keys() for item in batch)
    if not all(is_array(item) and item.dtype == first.dtype and item.ndim == first.ndim > 0 for item in batch):
        return False
    if is_integer(first) and first.ndim == 2 and len(batch) <= _TOKEN_FIELDS:
        return False
    return first.ndim > 2 or all(item.shape == first.shape for item in batch)


def is_integer(array: Array) -> bool:
    """Tell whether an array holds integers; truth values are none."""
    if isinstance(array, Tensor):
        return not array.is_floating_point() and not array.is_complex() and array.dtype is not torch.bool
    return bool(np.issubdtype(array.dtype, np.integer))
