"""Forwards that are only looked at, and parameters that are used outside of one, under a wrapper."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.parts.fsdp2_torch import is_fsdp2
from tightgrad.adapters.plain import unwrap_compiled
from tightgrad.core.errors import UsageError


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


@contextmanager
def through_wrapper(model: nn.Module) -> Iterator[None]:
    """Make sure that a forward inside goes through the wrapper.

    Raises:
        UsageError: it went to the module within, whose gradients DistributedDataParallel would not sum then.
    """
    inner = unwrap_compiled(model)
    if not isinstance(inner, DistributedDataParallel) or inner is not model:  # compiled code calls no hooks
        yield
        return
    calls: list[int] = []
    with inner.register_forward_pre_hook(lambda *_: calls.append(1)):
        yield
    if not calls:
        raise UsageError(
            "the forward did not go through DistributedDataParallel, which would then not sum its gradients over "
            "ranks. Call the wrapped model itself, model(batch), and not model.module or a method of it such as "
            "encode_image(): let the model's forward call that."
        )


def refuses_use_outside(model: nn.Module) -> str | None:
    """Say why a parameter may not be used in a loss after the wrapper's forward; None if it may."""
    inner = unwrap_compiled(model)
    if is_fsdp2(inner):
        return "fully_shard has cut it into shards, which only the model's own forward puts together"
    if isinstance(inner, DistributedDataParallel) and inner.find_unused_parameters:
        return "DistributedDataParallel(find_unused_parameters=True) takes it for unused after its forward"
    return None
