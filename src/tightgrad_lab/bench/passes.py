"""Counts the bytes that operators read and write, as a second witness next to the clock."""

from types import TracebackType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTraffic(TorchDispatchMode):
    """Within, adds up the sizes of every operator's tensor arguments (twice if written to) and new results.

    `numpy.vecdot`, which reads gradients for the norm, counts as an operator of one argument.

    Attributes:
        nbytes: so far. What caches save is not taken off.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nbytes = 0
        self._vecdot = getattr(np, "vecdot", None)
        self._patch = patch.object(np, "vecdot", self._counted_vecdot) if self._vecdot is not None else None

    def __enter__(self) -> "MemoryTraffic":
        """Count from here."""
        if self._patch is not None:
            self._patch.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Up to here."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if self._patch is not None:
            self._patch.stop()

    def _counted_vecdot(self, first: Any, second: Any, **settings: Any) -> Any:
        assert self._vecdot is not None
        self.nbytes += first.nbytes if first is second else first.nbytes + second.nbytes
        return self._vecdot(first, second, **settings)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count."""
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
