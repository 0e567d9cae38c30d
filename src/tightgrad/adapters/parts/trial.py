"""Forwards that are only looked at, under a wrapper."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.parts.fsdp2_torch import is_fsdp2
from tightgrad.adapters.plain import unwrap_compiled


@contextmanager
def without_reduction(model: nn.Module) -> Iterator[None]:
    """Let the wrapper neither reduce nor send buffers for the forwards inside, and expect no backward of them.

    Under FSDP2 they still gather parameters, so that every rank must run as many.
    """
    inner = unwrap_compiled(model)
    if isinstance(inner, DistributedDataParallel):
        sends_buffers = inner.require_forward_param_sync  # every forward of DDP sets it (torch 2.9 to 2.14)
        inner.require_forward_param_sync = False
        try:
            with inner.no_sync():
                yield
        finally:
            inner.require_forward_param_sync = sends_buffers
        return
    try:
        yield
    finally:
        if is_fsdp2(inner):
            inner.reshard()  # a forward without a backward leaves the root's parameters unsharded
