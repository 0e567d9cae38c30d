"""From a model and a plan to what connects the two: the wrapper's adapter, and what sums gradients over ranks.

They are chosen together, since each wrapper can sum in its own ways. A wrapper that is not known is refused, never
guessed at.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tightgrad.adapters.ddp import DDPAdapter, check_ddp_internals
from tightgrad.adapters.ddp_hook import BucketHandOver, held_hook, refuses_hook
from tightgrad.adapters.fsdp2 import FSDP2Adapter
from tightgrad.adapters.fsdp2_hand_over import NodeHandOver, UnitHandOver, sum_by_themselves
from tightgrad.adapters.parts.ddp_ignored import check_reduces_all
from tightgrad.adapters.parts.fsdp2_torch import check_internals, forget_iteration, fsdp_modules, is_fsdp2
from tightgrad.adapters.parts.placement import check_not_split, check_split_by_fsdp2, mesh_is_smaller, smaller_mesh
from tightgrad.adapters.plain import Adapter, trainable_parameters, unwrap_compiled
from tightgrad.collectives import SingleCollective, TorchCollective
from tightgrad.collectives.torch_dist import all_processes
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.protocols import Collective
from tightgrad.plan.plan import Resolved
from tightgrad.sync.after_backward import AfterBackward
from tightgrad.sync.by_wrapper import ByFSDP2, ByWrapper
from tightgrad.sync.ddp_buckets import DDPBuckets
from tightgrad.sync.fsdp2_shards import FSDP2Nodes, FSDP2Shards
from tightgrad.sync.protocol import GradientSync

Pair = tuple[Adapter, GradientSync]


@dataclass(frozen=True, slots=True)
class _Asked:
    plan: Resolved
    collective: Collective | None
    seed: int
    clock: StageClock
    only: Set[int] | None


def choose(
    model: nn.Module,
    plan: Resolved,
    collective: Collective | None = None,
    *,
    seed: int = 0,
    clock: StageClock | None = None,
    only: Set[int] | None = None,
) -> Pair:
    """Choose the adapter for a model, and what sums its gradients over ranks as the plan says.

    Args:
        model: a plain module, or one in DistributedDataParallel or `fully_shard`, compiled or not.
        plan: to run.
        collective: the data-parallel ranks; None takes the wrapper's, or one process for a plain module.
        seed: of all random numbers that methods draw.
        clock: takes the seconds of the stages.
        only: identities of the parameters that the optimizer holds; None holds all. Where gradients are summed after
            backward, the others are left out; where a wrapper sums, it sums them too.

    Raises:
        UnsupportedError: the wrapper, or what the plan asks of it, is not supported.
        IncompatiblePlanError: the plan cannot run inside FSDP2's backward.
    """
    asked = _Asked(plan, collective, seed, clock or StageClock(), only)
    inner = unwrap_compiled(model)
    _check_no_optimizer_in_backward(inner)
    if isinstance(inner, DistributedDataParallel):
        return _ddp(inner, asked, is_compiled=inner is not model)
    if is_fsdp2(inner):
        return _fsdp2(inner, asked)
    adapter = plain_adapter(inner, collective, only)
    if plan.compress.overlap == "backward":
        raise UnsupportedError(
            'overlap="backward" needs DistributedDataParallel, which says when gradients are ready; the model is a '
            'plain module. Wrap it, or take Compress(overlap="none").'
        )
    return adapter, _after_backward(adapter, asked)


def plain_adapter(
    model: nn.Module, collective: Collective | None = None, only: Set[int] | None = None, asks: str = "attach"
) -> Adapter:
    """Return the adapter of a module without a wrapper.

    Args:
        model: compiled or not.
        collective: as in `choose`.
        only: as in `choose`.
        asks: the function that the user called, for messages.

    Raises:
        UnsupportedError: it has a wrapper that is not known, or that is around a part of it only; or nobody would sum
            its gradients.
    """
    inner = unwrap_compiled(model)
    _check_no_optimizer_in_backward(inner)
    if isinstance(inner, DataParallel) or type(inner).__module__.startswith("torch.distributed.fsdp"):
        raise UnsupportedError(
            f"{type(inner).__name__} is not supported; use torch.nn.parallel.DistributedDataParallel or "
            "torch.distributed.fsdp.fully_shard, or pass the plain module."
        )
    _check_no_wrapper_inside(inner)
    check_not_split(inner, asks)
    num_processes = all_processes().world_size
    if collective is None and num_processes > 1:
        raise UnsupportedError(
            f"the model is a plain module but {num_processes} processes run: its gradients would never be "
            "synchronised. Wrap it in DistributedDataParallel, or pass "
            "attach(..., collective=tg.collectives.TorchCollective()) to let TightGrad reduce its gradients, or "
            "collective=tg.collectives.SingleCollective() to train each rank alone."
        )
    return Adapter(inner, collective or SingleCollective(), only)


def _after_backward(adapter: Adapter, asked: _Asked) -> AfterBackward:
    return AfterBackward(adapter, asked.plan, asked.seed, asked.clock)


def _ddp(model: DistributedDataParallel, asked: _Asked, *, is_compiled: bool) -> Pair:
    """Buckets while backward goes on, DDP's own average, or the sum after backward."""
    plan, accumulate = asked.plan, asked.plan.accumulate
    several = accumulate.several_backwards
    if not plan.is_empty:
        check_reduces_all(model)
    check_not_split(model.module, "attach")
    check_ddp_internals(model)
    if plan.compress.overlap == "backward":
        reason = refuses_hook(model, several)
        if reason is not None:
            raise UnsupportedError(f'overlap="backward" cannot be had: {reason}. Take Compress(overlap="none").')
        ranks = asked.collective or TorchCollective(model.process_group)
        hand_over = BucketHandOver(model, ranks, trainable_parameters(model.module))
        adapter = DDPAdapter(model, "hook", ranks, hand_over=hand_over)
        return adapter, DDPBuckets(adapter, hand_over, plan, asked.seed, asked.clock)
    low_precision = any(
        parameter.dtype in (torch.float16, torch.bfloat16) for parameter in trainable_parameters(model.module).values()
    )
    is_after = plan.has_compress or accumulate.on_oom == "split" or (low_precision and several)
    if model.static_graph and (is_after or (several and accumulate.sync != "every")):
        raise UnsupportedError(
            "DistributedDataParallel(static_graph=True) cannot leave out a synchronisation on this torch (pytorch "
            'issue 187732); build it without static_graph, or accumulate with sync="every".'
        )
    if is_after:
        adapter = DDPAdapter(model, "never", asked.collective, asked.only)
        return adapter, _after_backward(adapter, asked)
    _check_ranks_of_ddp(model, asked.collective)
    hook = held_hook(model)
    if hook is not None:
        hook.serve_nobody()
    sync: Literal["last", "every"] = "every" if accumulate.sync == "every" else "last"
    return DDPAdapter(model, sync, asked.collective, is_compiled=is_compiled), ByWrapper()


def _check_ranks_of_ddp(model: DistributedDataParallel, collective: Collective | None) -> None:
    world_size = TorchCollective(model.process_group).world_size
    if collective is not None and collective.world_size != world_size:
        raise UnsupportedError(
            f"DistributedDataParallel averages over {world_size} ranks by itself, but collective= has "
            f"{collective.world_size}; leave collective= out, or pass tg.collectives.TorchCollective("
            "model.process_group)."
        )


def _fsdp2(model: nn.Module, asked: _Asked) -> Pair:
    """Shards between nodes, shards of whole gradients, or FSDP2's own average."""
    plan, accumulate = asked.plan, asked.plan.accumulate
    check_internals(model)
    assert is_fsdp2(model)
    forget_iteration(model)  # a forward without a backward leaves the root's parameters unsharded
    check_split_by_fsdp2(model)
    if accumulate.on_oom == "split" or plan.compress.overlap == "none":
        raise UnsupportedError(
            'FSDP2 communicates during forward and backward, so neither on_oom="split", which runs a window again, nor '
            'overlap="none" can be had; leave them out, or use DistributedDataParallel with this plan.'
        )
    sum_by_themselves(fsdp_modules(model))  # an earlier pipeline may have handed over
    ranks = asked.collective or TorchCollective()
    smaller = smaller_mesh(trainable_parameters(model), ranks.world_size)
    if plan.has_compress and smaller is not None:
        if asked.collective is None:
            raise mesh_is_smaller(*smaller, ranks.world_size)
        between = NodeHandOver(model, ranks)
        adapter = FSDP2Adapter(model, "last", ranks, between)
        return adapter, FSDP2Nodes(adapter, between, plan, asked.seed, asked.clock)
    is_lossless = plan.compress.reducer.leaves_nothing and plan.compress.overlap == "auto"
    if not plan.has_compress or is_lossless or ranks.world_size == 1:
        adapter = FSDP2Adapter(model, "last" if plan.compress.overlap == "backward" else accumulate.sync, ranks)
        return adapter, ByFSDP2(adapter)
    units = UnitHandOver(model, ranks)
    adapter = FSDP2Adapter(model, "last", ranks, units)
    return adapter, FSDP2Shards(adapter, units, plan, asked.seed, asked.clock)


def _check_no_wrapper_inside(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if is_fsdp2(module) or isinstance(module, DistributedDataParallel | DataParallel):
            raise UnsupportedError(
                f"{name!r} inside the model is in {type(module).__name__}, but the model itself is not: some gradients "
                "would be summed over ranks and others not. Wrap the whole model as well, or give that module to "
                "attach if it has all parameters that are trained."
            )


def _check_no_optimizer_in_backward(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_in_backward_optimizers", None):
            raise UnsupportedError(
                f"{name!r} has an optimizer that steps inside backward, before any window is complete; remove "
                "_apply_optimizer_in_backward."
            )
