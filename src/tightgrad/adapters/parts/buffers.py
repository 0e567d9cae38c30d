"""Rank 0's tensors to all ranks, one message for each dtype."""

from collections.abc import Iterable

import torch
from torch import Tensor

from tightgrad.core.protocols import Collective


def broadcast_tensors(tensors: Iterable[Tensor], collective: Collective) -> None:
    """Overwrite `tensors` with rank 0's. Collective: every rank must call it with the same shapes and dtypes."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
    for group in by_dtype.values():
        flat = collective.broadcast_(torch.cat([tensor.reshape(-1) for tensor in group]))
        for tensor, piece in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(piece.view(tensor.shape))
