"""Wrappers that average gradients themselves, while backward runs: what is left is to undo the loss scale."""

import torch

from tightgrad.adapters.fsdp2 import FSDP2Adapter
from tightgrad.adapters.parts.placement import like_sharded
from tightgrad.core.protocols import GradNorm
from tightgrad.core.types import Grads
from tightgrad.plan.guard import vote, vote_failure
from tightgrad.sync.compressed import completed
from tightgrad.sync.protocol import GradientSync, Summed


class ByWrapper(GradientSync):
    """Takes gradients that DistributedDataParallel has summed."""

    votes = False

    def sum(self, grads: Grads, norm: GradNorm) -> Summed:
        """Return the wrapper's sums, unscaled."""
        unscale_(grads, self._facts.factor)
        return Summed(grads, self._facts.slots)

    def sum_residuals(self, residuals: Grads) -> Grads:
        """Return what one process has: it leaves nothing itself, but may have loaded what several ranks have left."""
        return residuals


class ByFSDP2(ByWrapper):
    """Takes gradients that FSDP2 has summed: of a parameter that no rank used they are zeros, and not delivered."""

    votes = True

    def __init__(self, adapter: FSDP2Adapter) -> None:
        self._adapter = adapter

    def sum(self, grads: Grads, norm: GradNorm) -> Summed:
        """Return the wrapper's sums of what any rank used. Collective: every rank must call it, or `fail`."""
        parameters = self._adapter.parameters
        voted = vote(self._adapter.known_used(grads), list(parameters), True, self._adapter.collective)
        unscale_(grads, self._facts.factor)
        return Summed(completed(grads, voted.used, parameters), self._facts.slots)

    def fail(self, why: str) -> None:
        """Take part in the vote only to make it an error on the other ranks. Collective, as `sum`."""
        vote_failure(list(self._adapter.parameters), self._adapter.collective, why)

    def sum_residuals(self, residuals: Grads) -> Grads:
        """Return what one process has, placed as its parameters are."""
        parameters = self._adapter.parameters
        return {
            name: like_sharded(parameters[name], left.to(parameters[name].dtype)) for name, left in residuals.items()
        }


def unscale_(grads: Grads, factor: float) -> None:
    """Multiply all gradients in place, where the factor is not 1."""
    if factor != 1.0 and grads:
        torch._foreach_mul_(list(grads.values()), factor)
