"""From a model to its adapter. A wrapper that is not known is refused, never guessed at."""

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tightgrad.adapters.ddp import DDPAdapter
from tightgrad.adapters.names import unwrap_compiled
from tightgrad.adapters.single import SingleAdapter
from tightgrad.collectives import SingleCollective
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.protocols import Adapter, Collective


def make_adapter(model: nn.Module, collective: Collective | None = None) -> Adapter:
    """Choose the adapter for `model`.

    Args:
        model: a plain module or one in DistributedDataParallel, compiled or not.
        collective: the data-parallel ranks of a plain module; None is one process.

    Raises:
        UnsupportedError: the wrapper is not supported, or a plain module runs in a process group without replicas
            being kept equal by anything.
    """
    inner = unwrap_compiled(model)
    if isinstance(inner, DistributedDataParallel):
        return DDPAdapter(inner, collective)
    if _is_fsdp(inner) or isinstance(inner, DataParallel):
        raise UnsupportedError(
            f"{type(inner).__name__} is not supported; wrap the model in "
            "torch.nn.parallel.DistributedDataParallel, or pass the plain module."
        )
    if collective is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UnsupportedError(
            f"the model is a plain module but {dist.get_world_size()} processes run: its gradients would never be "
            "synchronised. Wrap it in DistributedDataParallel, or pass "
            "attach(..., collective=tg.collectives.TorchCollective()) to let TightGrad reduce its gradients, or "
            "collective=tg.collectives.SingleCollective() to train each rank alone."
        )
    return SingleAdapter(inner, collective or SingleCollective())


def _is_fsdp(module: nn.Module) -> bool:
    return any(base.__module__.startswith("torch.distributed.fsdp") for base in type(module).__mro__)
