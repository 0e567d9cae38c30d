"""Replicas of a plain module that train alone and meet now and then.

Where they last met is the anchor: what the outer step calls its parameters. What it calls their gradient is how far
this replica has moved away, backwards.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.buffers import broadcast_tensors
from tightgrad.adapters.detect import make_adapter
from tightgrad.adapters.names import unwrap_compiled
from tightgrad.adapters.single import SingleAdapter
from tightgrad.collectives import SingleCollective, TorchCollective
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads


class ReplicaAdapter(SingleAdapter):
    """A plain module on each rank.

    Args:
        model: the module that this rank trains.
        collective: the ranks; None takes the default process group, or one process without one.

    Raises:
        UnsupportedError: the module is in a wrapper, which would sum gradients at every step.

    Attributes:
        parameters: the anchors by name, float32 where the module has fewer bits.
    """

    parameters: dict[str, nn.Parameter]

    def __init__(self, model: nn.Module, collective: Collective | None = None) -> None:
        module = unwrap_compiled(model)
        if isinstance(module, DistributedDataParallel):
            raise UnsupportedError(
                "DistributedDataParallel sums gradients at every step, which local updates are there to avoid; pass "
                "the plain module, model.module."
            )
        if collective is None:
            several = dist.is_available() and dist.is_initialized()
            collective = TorchCollective() if several else SingleCollective()
        if not isinstance(make_adapter(module, collective), SingleAdapter):
            raise UnsupportedError(
                f"local updates need a whole replica on every rank, and {type(module).__name__} is sharded over them; "
                "pass a plain module."
            )
        super().__init__(module, collective)
        self._module = module
        self._replica = self.parameters
        self.parameters = {
            name: nn.Parameter(p.detach().float() if p.dtype.itemsize < 4 else p.detach().clone())
            for name, p in self._replica.items()
        }

    @torch.no_grad()
    def start_together(self) -> None:
        """Overwrite the module with rank 0's, as DistributedDataParallel does. Collective: every rank must call it."""
        broadcast_tensors([*self._module.parameters(), *self._module.buffers()], self.collective)
        for name, parameter in self._replica.items():
            self.parameters[name].copy_(parameter)

    @torch.no_grad()
    def moved(self) -> Grads:
        """Anchor minus parameter, over the number of ranks: summed over ranks, the mean pseudo-gradient."""
        share = 1.0 / self.collective.world_size
        return {name: (anchor - self._replica[name]).mul_(share) for name, anchor in self.parameters.items()}

    @torch.no_grad()
    def to_anchors(self) -> None:
        """Set the module's parameters to the anchors."""
        for name, parameter in self._replica.items():
            parameter.copy_(self.parameters[name])

    def meet(self) -> None:
        """Continue from the anchors, and with rank 0's buffers. Collective: every rank must call it."""
        self.to_anchors()
        with torch.no_grad():
            broadcast_tensors(self._module.buffers(), self.collective)
