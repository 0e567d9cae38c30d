"""DistributedDataParallel with its own all-reduce left out: the pipeline reduces after the last backward.

Nothing overlaps and the whole path runs in order: the reference for the overlapped hook.
"""

from collections.abc import Iterable, Mapping, Set
from contextlib import AbstractContextManager

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.parts.buffers import broadcast_tensors
from tightgrad.adapters.parts.forward import has_synced_layers, sends_buffers
from tightgrad.adapters.parts.grads import copy_grads, each_grad, put_grads, scale_grads_
from tightgrad.adapters.parts.names import trainable_parameters
from tightgrad.collectives import TorchCollective
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads


class DDPExplicitAdapter:
    """A DDP module, used for its replicas and its process group.

    Args:
        model: the wrapper.
        collective: the data-parallel ranks; None takes the wrapper's.
        only: identities of the parameters that are trained; None trains all that require gradients.
    """

    reduces = False
    every_rank_runs = False
    counts_writes = True
    holds_back = False
    remembered_shapes: Mapping[str, tuple[int, ...]] | None = None
    divisor = 1

    def __init__(
        self, model: DistributedDataParallel, collective: Collective | None = None, only: Set[int] | None = None
    ) -> None:
        self.model = model
        self.collective: Collective = collective or TorchCollective(model.process_group)
        self.parameters = trainable_parameters(model.module, only)
        self._talks_in_forward = has_synced_layers(model) or sends_buffers(model)

    @property
    def waits_in_forward(self) -> bool:
        """Where there are buffers to send."""
        return self._talks_in_forward

    @property
    def moves_gradients(self) -> bool:
        """Not without a synchronised backward."""
        return False

    def connect(self) -> None:
        """Do nothing: DDP is connected already."""

    def begin_window(self) -> None:
        """Send rank 0's buffers to all ranks, as DDP's own synchronised forward would."""
        if self.model.training and self.model.broadcast_buffers:
            broadcast_tensors(self.model.module.buffers(), self.collective)

    def micro_batch(self, index: int, count: int) -> AbstractContextManager[None]:
        """`no_sync` throughout. DDP would send buffers again in its first forward, which not every rank may have."""
        self.model.require_forward_param_sync = False
        return self.model.no_sync()

    def leaves(self) -> Iterable[Tensor]:
        """Return the parameters of the module."""
        return self.parameters.values()

    def gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """Return `parameter.grad` of every parameter."""
        return each_grad(self.parameters)

    def accumulated(self) -> Grads:
        """Return copies of every `parameter.grad`."""
        return copy_grads(self.parameters)

    def restore_accumulated(self, grads: Grads) -> None:
        """Put the gradients back as `parameter.grad`."""
        put_grads(self.parameters, grads)

    def scale_accumulated_(self, factor: float) -> None:
        """Multiply every `parameter.grad` in place."""
        scale_grads_(self.parameters, factor)

    def leave_window(self) -> None:
        """Nothing is left of a forward under `no_sync`."""

    def release(self) -> None:
        """Let DDP send buffers again before its next forward."""
        self.model.require_forward_param_sync = True

    def sent_nbytes(self) -> int:
        """DDP itself sends nothing under `no_sync`."""
        return 0
