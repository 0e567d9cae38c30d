"""Counts the bytes that are read and written, as a second witness next to the clock."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tightgrad.clip import blas


class MemoryTraffic(ExitStack):
    """Within, adds up the sizes of every operator's tensor arguments (twice if written to) and new results, and of
    what this library's norm reads without an operator.

    Attributes:
        nbytes: so far. What caches save is not taken off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __enter__(self) -> "MemoryTraffic":
        """Begin to count."""
        self.enter_context(_Operators(self._add))
        read = blas.sum_of_squares

        def counted(tensors: Sequence[Tensor]) -> float:
            self._add(sum(map(_nbytes, tensors)))
            return read(tensors)

        blas.sum_of_squares = counted
        self.callback(setattr, blas, "sum_of_squares", read)
        return self

    def _add(self, nbytes: int) -> None:
        self.nbytes += nbytes


class _Operators(TorchDispatchMode):
    def __init__(self, add: Callable[[int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._add = add

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
                self._add(_nbytes(tensor) * (2 if writes else 1))
        self._add(sum(_nbytes(tensor) for tensor in _tensors(result) if tensor.data_ptr() not in seen))
        return result


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
