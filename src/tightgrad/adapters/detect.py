"""From a model to its adapter. A wrapper that is not known is refused, never guessed at."""

from collections.abc import Set
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tightgrad.adapters.ddp import DDPAdapter, check_ddp_internals
from tightgrad.adapters.ddp_hook import held_hook, refuses_hook
from tightgrad.adapters.fsdp2 import FSDP2Adapter
from tightgrad.adapters.fsdp2_hand_over import NodeHandOver, UnitHandOver, sum_by_themselves
from tightgrad.adapters.parts.fsdp2_torch import check_internals, fsdp_modules, is_fsdp2
from tightgrad.adapters.parts.placement import check_not_split, check_split_by_fsdp2, mesh_is_smaller, smaller_mesh
from tightgrad.adapters.plain import PlainAdapter, trainable_parameters, unwrap_compiled
from tightgrad.collectives import SingleCollective, TorchCollective
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.protocols import Adapter, Collective

Reducing = Literal["wrapper", "pipeline", "backward", "auto", "any"]


def make_adapter(
    model: nn.Module,
    collective: Collective | None = None,
    *,
    reducing: Reducing = "pipeline",
    sync: str = "auto",
    several_backwards: bool = True,
    only: Set[int] | None = None,
    asks: str = "attach",
) -> Adapter:
    """Choose the adapter for `model`.

    Args:
        model: a plain module, or one in DistributedDataParallel or `fully_shard`, compiled or not.
        collective: the data-parallel ranks; None takes the wrapper's, or one process for a plain module.
        reducing: who should sum over ranks: the wrapper, overlapped with backward; the pipeline after it; or the
            pipeline during "backward", which needs DistributedDataParallel or FSDP2. "auto" is the pipeline during
            backward under FSDP2 and after it elsewhere; "any" is the wrapper under FSDP2 and the pipeline elsewhere.
            A plain module's gradients are always summed by the pipeline.
        sync: with "wrapper", when it sums: "last", "every" or "auto".
        several_backwards: whether a window may have more than one micro-batch.
        only: identities of the parameters that the optimizer holds; None holds all. Where the pipeline sums over ranks
            after backward, the others are left out; where a wrapper does, it sums them too.
        asks: the function that the user called, for messages.

    Raises:
        UnsupportedError: the wrapper, or what is asked of it, is not supported.
    """
    inner = unwrap_compiled(model)
    _check_no_optimizer_in_backward(inner)
    if isinstance(inner, DistributedDataParallel):
        return _ddp(inner, collective, reducing, sync, several_backwards, only)
    if is_fsdp2(inner):
        return _fsdp2(inner, collective, reducing, sync)
    if isinstance(inner, DataParallel) or type(inner).__module__.startswith("torch.distributed.fsdp"):
        raise UnsupportedError(
            f"{type(inner).__name__} is not supported; use torch.nn.parallel.DistributedDataParallel or "
            "torch.distributed.fsdp.fully_shard, or pass the plain module."
        )
    _check_no_wrapper_inside(inner)
    check_not_split(inner, asks)
    if collective is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UnsupportedError(
            f"the model is a plain module but {dist.get_world_size()} processes run: its gradients would never be "
            "synchronised. Wrap it in DistributedDataParallel, or pass "
            "attach(..., collective=tg.collectives.TorchCollective()) to let TightGrad reduce its gradients, or "
            "collective=tg.collectives.SingleCollective() to train each rank alone."
        )
    if reducing == "backward":
        raise UnsupportedError(
            'overlap="backward" needs DistributedDataParallel, which says when gradients are ready; the model is a '
            'plain module. Wrap it, or take Compress(overlap="none").'
        )
    return PlainAdapter(inner, collective or SingleCollective(), only)


def _ddp(
    model: DistributedDataParallel,
    collective: Collective | None,
    reducing: Reducing,
    sync: str,
    several: bool,
    only: Set[int] | None,
) -> Adapter:
    check_not_split(model.module, "attach")
    check_ddp_internals(model)
    if reducing == "backward":
        reason = refuses_hook(model, several)
        if reason is not None:
            raise UnsupportedError(f'overlap="backward" cannot be had: {reason}. Take Compress(overlap="none").')
        return DDPAdapter(model, "hook", collective)
    low_precision = any(
        parameter.dtype in (torch.float16, torch.bfloat16) for parameter in trainable_parameters(model.module).values()
    )
    explicit = reducing in ("pipeline", "auto", "any") or (low_precision and several)
    if model.static_graph and (explicit or (several and sync != "every")):
        raise UnsupportedError(
            "DistributedDataParallel(static_graph=True) cannot leave out a synchronisation on this torch (pytorch "
            'issue 187732); build it without static_graph, or accumulate with sync="every".'
        )
    if explicit:
        return DDPAdapter(model, "never", collective, only)
    _check_ranks_of_ddp(model, collective)
    hook = held_hook(model)
    if hook is not None:
        hook.serve_nobody()
    return DDPAdapter(model, "every" if sync == "every" else "last", collective)


def _check_ranks_of_ddp(model: DistributedDataParallel, collective: Collective | None) -> None:
    world_size = dist.get_world_size(model.process_group)
    if collective is not None and collective.world_size != world_size:
        raise UnsupportedError(
            f"DistributedDataParallel averages over {world_size} ranks by itself, but collective= has "
            f"{collective.world_size}; leave collective= out, or pass tg.collectives.TorchCollective("
            "model.process_group)."
        )


def _fsdp2(model: nn.Module, collective: Collective | None, reducing: Reducing, sync: str) -> Adapter:
    check_internals(model)
    assert is_fsdp2(model)
    model.reshard()  # a forward without a backward leaves the root's parameters unsharded
    check_split_by_fsdp2(model)
    if reducing == "pipeline":
        raise UnsupportedError(
            'FSDP2 communicates during forward and backward, so neither on_oom="split", which runs a window again, nor '
            'overlap="none" can be had; leave them out, or use DistributedDataParallel with this plan.'
        )
    sum_by_themselves(fsdp_modules(model))  # an earlier pipeline may have handed over
    ranks = collective or TorchCollective()
    smaller = smaller_mesh(trainable_parameters(model), ranks.world_size)
    hand_over: UnitHandOver | None = None
    if reducing != "wrapper" and smaller is not None:
        if collective is None:
            raise mesh_is_smaller(*smaller, ranks.world_size)
        hand_over = NodeHandOver(model, ranks)
    elif reducing in ("backward", "auto") and ranks.world_size > 1:
        hand_over = UnitHandOver(model, ranks)
    return FSDP2Adapter(model, "last" if hand_over or reducing == "backward" else sync, ranks, hand_over)


def _check_no_wrapper_inside(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if is_fsdp2(module) or isinstance(module, DistributedDataParallel | DataParallel):
            raise UnsupportedError(
                f"{name!r} inside the model is in {type(module).__name__}, but the model itself is not: some gradients "
                "would be summed over ranks and others not. Wrap the whole model as well."
            )


def _check_no_optimizer_in_backward(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_in_backward_optimizers", None):
            raise UnsupportedError(
                f"{name!r} has an optimizer that steps inside backward, before any window is complete; remove "
                "_apply_optimizer_in_backward."
            )
