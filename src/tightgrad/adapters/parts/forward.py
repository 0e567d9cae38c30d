"""What a forward of a wrapper waits for, and what it leaves behind."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def has_synced_layers(module: nn.Module) -> bool:
    """Whether a layer's forward does by itself, as synchronised batch normalisation."""
    return any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules())


def sends_buffers(model: DistributedDataParallel) -> bool:
    """Whether a forward of the wrapper may, to send rank 0's buffers."""
    return model.broadcast_buffers and any(True for _ in model.module.buffers())


def will_rebuild_buckets(model: DistributedDataParallel) -> bool:
    """Whether a forward of the wrapper will, once, to agree on the order of gradients seen in the first synchronised
    backward. Where torch does not say whether that has been, it may come any time.
    """
    rebuilds = model.static_graph or not model.find_unused_parameters
    return rebuilds and not getattr(model, "_has_rebuilt_buckets", False)


def forget_forward(model: DistributedDataParallel) -> None:
    """Forget a synchronised forward whose backward has not run, or has failed: the next backward would be reduced in
    its place, under `no_sync` as well. DDP agrees on its buckets anew. Collective: every rank must call it.
    """
    model._has_rebuilt_buckets = False
    model.reducer._reset_state()
