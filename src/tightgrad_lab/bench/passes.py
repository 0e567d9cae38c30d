"""Counts the bytes that are read and written, as a second witness next to the clock."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTraffic(TorchDispatchMode):
    """Within, adds up the sizes of every operator's tensor arguments (twice if written to) and new results.

    Attributes:
        nbytes: so far. What caches save is not taken off.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        schema = func._schema.arguments
        known = {argument.name: argument for argument in schema}
        named = [*zip(schema, args, strict=False), *((known[name], value) for name, value in (kwargs or {}).items())]
        seen = set()
        for argument, value in named:
            writes = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(value):
                seen.add(tensor.data_ptr())
                self.nbytes += _nbytes(tensor) * (2 if writes else 1)
        self.nbytes += sum(_nbytes(tensor) for tensor in _tensors(result) if tensor.data_ptr() not in seen)
        return result


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
