"""DistributedDataParallel in explicit mode: DDP's own all-reduce stays off, the pipeline reduces after the last
backward. Nothing overlaps, the whole path runs in order: the reference for the overlapped hook.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.names import trainable_parameters
from tightgrad.collectives import TorchCollective
from tightgrad.core.protocols import Collective


class DDPAdapter:
    """A DDP module, used for its replicas and its process group."""

    def __init__(self, model: DistributedDataParallel, collective: Collective | None = None) -> None:
        self.model = model
        self.collective: Collective = collective or TorchCollective(model.process_group)
        self.parameters = trainable_parameters(model.module)

    @contextmanager
    def window(self) -> Iterator[None]:
        """Enclose forward and backward in `no_sync`; first send rank 0's buffers, which DDP then leaves out."""
        self._broadcast_buffers()
        with self.model.no_sync():
            yield

    def _broadcast_buffers(self) -> None:
        buffers = [buffer for buffer in self.model.module.buffers() if buffer.numel()]
        if not (self.model.broadcast_buffers and self.model.training):
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in buffers:
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        for group in by_dtype.values():
            flat = self.collective.broadcast_(torch.cat([buffer.detach().reshape(-1) for buffer in group]))
            pieces = flat.split([buffer.numel() for buffer in group])
            for buffer, piece in zip(group, pieces, strict=True):
                buffer.detach().copy_(piece.view(buffer.shape))
