"""Wrappers that average gradients themselves, while backward runs: what is left is to undo the loss scale."""

from collections.abc import Set
from typing import Protocol

import torch

from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Adapter, GradNorm
from tightgrad.core.types import Grads
from tightgrad.sync.compressed import completed
from tightgrad.sync.protocol import Summed, WindowFacts


class ByWrapper:
    """Takes gradients that DistributedDataParallel has summed."""

    commits_in_backward = False
    _facts: WindowFacts

    def connect(self) -> None:
        """Make no group of ranks: the wrapper has its own."""

    def begin(self, facts: WindowFacts) -> None:
        """Begin a window, before its first forward."""
        self._facts = facts

    def sum(self, grads: Grads, norm: GradNorm) -> Summed:
        """Return the wrapper's sums, unscaled."""
        unscale_(grads, self._facts.factor)
        return Summed(grads, self._facts.slots)

    def sum_residuals(self, residuals: Grads) -> Grads:
        """Raise: a wrapper that sums by itself sends everything."""
        raise UsageError("flush() delivers residuals, and the wrapper, which sums gradients here, leaves none.")

    def fail(self) -> None:
        """Tell nobody: the other ranks do not wait, and learn of it later."""

    def cancel(self) -> None:
        """Wait for nothing: the wrapper leaves nothing under way."""

    def abandon(self) -> None:
        """Leave it to the adapter, which lets the wrapper forget."""


class KnowsUse(Adapter, Protocol):
    """Tells which parameters ranks have used."""

    def used_anywhere(self, grads: Grads) -> Set[str]:
        """Return the names of parameters that any rank used in this window. Collective: every rank must call it."""


class ByFSDP2(ByWrapper):
    """Takes gradients that FSDP2 has summed: of a parameter that no rank used they are zeros, and not delivered."""

    def __init__(self, adapter: KnowsUse) -> None:
        self._adapter = adapter

    def sum(self, grads: Grads, norm: GradNorm) -> Summed:
        """Return the wrapper's sums of what any rank used. Collective: every rank must call it."""
        used = self._adapter.used_anywhere(grads)
        unscale_(grads, self._facts.factor)
        return Summed(completed(grads, used, self._adapter.parameters), self._facts.slots)


def unscale_(grads: Grads, factor: float) -> None:
    """Multiply all gradients in place, where the factor is not 1."""
    if factor != 1.0 and grads:
        torch._foreach_mul_(list(grads.values()), factor)
