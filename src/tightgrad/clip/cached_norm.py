"""A norm that is computed once as long as the tensors do not change."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tightgrad.core.protocols import GradNorm


class VoidableNorm(GradNorm, Protocol):
    """Measures a norm, as `GradNorm` does, to which a rank may contribute NaN."""

    def __call__(self, tensors: Sequence[Tensor], norm_type: float = 2.0, *, is_void: bool = False) -> Tensor:
        """The norm over all elements of all tensors; NaN if it `is_void` on any rank."""


_Key = tuple[float, tuple[tuple[int, int], ...]]


class CachedNorm:
    """Remembers the last norm of each kind, keyed by the tensors' identities and in-place version counters."""

    def __init__(self, norm: VoidableNorm) -> None:
        self._norm = norm
        self._last: dict[_Key, Tensor] = {}
        self._alive: list[Tensor] = []

    def __call__(self, tensors: Sequence[Tensor], norm_type: float = 2.0, *, is_void: bool = False) -> Tensor:
        """The norm over all elements of all tensors; NaN if it `is_void` on any rank."""
        key = (norm_type, tuple((id(tensor), tensor._version) for tensor in tensors))
        if key not in self._last:
            self._alive.extend(tensors)  # an id is unique only while its tensor lives
            self._last[key] = self._norm(tensors, norm_type, is_void=is_void)
        return self._last[key]

    def clear(self) -> None:
        """Forget, and let the tensors go."""
        self._last.clear()
        self._alive.clear()
