"""Replicas of a plain module that train alone between outer steps.

The anchors are the weights after the last outer step, the same on every rank: the outer step updates them as its
parameters. Their gradient is the anchor minus this replica's weights. A replica of fewer bits starts from the rounded
anchor, and its distance is measured from there; the anchor keeps what was rounded off.
"""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tightgrad.adapters.parts.fsdp2_torch import is_fsdp2
from tightgrad.adapters.plain import Adapter, broadcast_tensors, unwrap_compiled
from tightgrad.collectives.torch_dist import all_processes
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads
from tightgrad.sync.choose import plain_adapter


class ReplicaAdapter(Adapter):
    """Connects the plain module that each rank trains alone, and its anchors.

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
        _check_is_whole(module)
        if collective is None:
            collective = all_processes()
        plain_adapter(module, collective, asks="attach_local")  # for what else it refuses
        super().__init__(module, collective)
        self._module = module
        self._replica = self.parameters
        self.parameters = {
            name: nn.Parameter(p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True))
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
        """Return start minus parameter, over the number of ranks: summed over ranks, the mean pseudo-gradient."""
        share = 1.0 / self.collective.world_size
        return {
            name: (_rounded(anchor, self._replica[name].dtype) - self._replica[name]).mul_(share)
            for name, anchor in self.parameters.items()
        }

    @torch.no_grad()
    def to_anchors(self) -> None:
        """Set the module's parameters to the anchors."""
        for name, parameter in self._replica.items():
            parameter.copy_(self.parameters[name])

    def restart(self) -> None:
        """Start again from the anchors, and with rank 0's buffers. Collective: every rank must call it."""
        self.to_anchors()
        with torch.no_grad():
            broadcast_tensors(self._module.buffers(), self.collective)


def _rounded(anchor: Tensor, dtype: torch.dtype) -> Tensor:
    """What a replica of this dtype starts from, in the anchor's own."""
    return anchor.to(dtype).to(anchor.dtype)


def _check_is_whole(module: nn.Module) -> None:
    """Raise `UnsupportedError` unless every rank has the whole module, in no wrapper."""
    if isinstance(module, DistributedDataParallel):
        raise UnsupportedError(
            "local updates work on the plain module, and this one is in DistributedDataParallel, which sums gradients "
            "over its ranks at every step. To let ranks train alone, leave it out. To sum within islands and average "
            "across them, pass the module inside: DistributedDataParallel(model, process_group=island), and "
            "attach_local(model.module, ..., collective=TorchCollective(across)), where `across` holds the ranks of "
            "the same place in every island."
        )
    for name, part in module.named_modules():
        kind = type(part)
        if is_fsdp2(part) or kind.__module__.startswith("torch.distributed.fsdp"):
            raise UnsupportedError(
                f"local updates need the whole model on every rank, and {repr(name) if name else 'this one'} is "
                "sharded (fully_shard). To sum within islands of ranks and average across them, keep it whole: "
                "DistributedDataParallel(model, process_group=island), and attach_local(model.module, ..., "
                "collective=TorchCollective(across)), where `across` holds the ranks of the same place in every island."
            )
        if isinstance(part, DistributedDataParallel | DataParallel):
            raise UnsupportedError(
                f"local updates work on the plain module, and {name!r} inside it is in {kind.__name__}; pass a model "
                "without wrappers inside. The whole one may be in DistributedDataParallel within an island of ranks: "
                "pass its `module`."
            )
