"""DistributedDataParallel, which averages gradients itself while the last micro-batch's backward runs.

`no_sync` encloses forward and backward of every other micro-batch. A micro-batch's forward decides what its backward
does, so both have to be inside.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.parts.forward import forget_forward, has_synced_layers, sends_buffers, will_rebuild_buckets
from tightgrad.adapters.parts.grads import copy_grads, each_grad, put_grads, scale_grads_
from tightgrad.adapters.parts.names import trainable_parameters
from tightgrad.adapters.parts.ready_once import ready_once
from tightgrad.collectives import TorchCollective
from tightgrad.collectives.traffic import all_reduce_nbytes
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

LOOKS = 2  # synchronised backwards in which gradients are watched; what makes them ready twice is there from the first


class DDPAdapter:
    """A DDP module that reduces its own gradients, overlapped with backward.

    Args:
        model: the wrapped module.
        sync: "last" reduces once a window, "every" after each micro-batch.
        collective: the ranks; None takes the module's process group.
    """

    reduces = True
    every_rank_runs = True
    counts_writes = True
    holds_back = False
    remembered_shapes: Mapping[str, tuple[int, ...]] | None = None

    def __init__(self, model: DistributedDataParallel, sync: str, collective: Collective | None = None) -> None:
        self.model = model
        self.sync = sync
        self.collective: Collective = collective or TorchCollective(model.process_group)
        self.parameters = trainable_parameters(model.module)
        self.divisor = self.collective.world_size
        self._talks_in_forward = has_synced_layers(model) or sends_buffers(model)
        self._synced = 0
        self._synced_looked_at = 0

    @property
    def waits_in_forward(self) -> bool:
        """Where DDP sends buffers, and until it has built its buckets anew."""
        return self._talks_in_forward or will_rebuild_buckets(self.model)

    @property
    def moves_gradients(self) -> bool:
        """Where gradients are views of buckets, as long as these may be built anew."""
        return self.model.gradient_as_bucket_view and will_rebuild_buckets(self.model)

    def connect(self) -> None:
        """Do nothing: DDP is connected already."""

    def begin_window(self) -> None:
        """Do nothing: DDP sends buffers in its forward."""

    def micro_batch(self, index: int, count: int) -> AbstractContextManager[None]:
        """`no_sync`, but for the last micro-batch.

        Raises:
            UsageError: at its end, if gradients went on growing after DDP had reduced them.
        """
        if self.sync == "last" and index < count - 1:
            return self.model.no_sync()
        self._synced += 1
        if self._synced_looked_at < LOOKS and self.collective.world_size > 1:
            self._synced_looked_at += 1
            return ready_once(self.parameters)
        return nullcontext()

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
        """Let DDP forget it."""
        forget_forward(self.model)

    def release(self) -> None:
        """Do nothing: the module was not changed."""

    def sent_nbytes(self) -> int:
        """One all-reduce of all parameters' gradients for each synchronised backward."""
        nbytes = sum(parameter.numel() * parameter.element_size() for parameter in self.parameters.values())
        synced, self._synced = self._synced, 0
        return synced * all_reduce_nbytes(nbytes, self.collective.world_size)
