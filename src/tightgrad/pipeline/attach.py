"""The way in."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn, optim
from torch.amp import GradScaler

from tightgrad.accumulate.buffer import GradientBuffer
from tightgrad.accumulate.denominator import DenominatorCheck
from tightgrad.accumulate.weights import Weight
from tightgrad.adapters.plain import Adapter, has_synced_layers
from tightgrad.checkpoint.state import PipelineState
from tightgrad.clip.fold import folding, multiplied
from tightgrad.core.check import check_integer
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads
from tightgrad.pipeline.closure import check_closure
from tightgrad.pipeline.delivery import Delivery
from tightgrad.pipeline.optimizer_step import OptimizerStep
from tightgrad.pipeline.parts import Parts
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.premises.collaborators import (
    check_callable,
    check_model,
    check_plan,
    check_scaler_is_fresh,
    check_weight,
    checked_optimizers,
    checked_records,
    checked_schedulers,
    needs_closure,
    needs_metric,
)
from tightgrad.pipeline.premises.loss_premise import LossOf
from tightgrad.pipeline.premises.optimizer_settings import described
from tightgrad.pipeline.premises.ownership import Ownership
from tightgrad.pipeline.premises.premises import Premises, held_by_any, held_names
from tightgrad.pipeline.premises.scaler_guard import guard_scaler
from tightgrad.plan.guard import Guard, agreed_on_any
from tightgrad.plan.loss_scaling import loss_scaling
from tightgrad.plan.plan import Plan
from tightgrad.records import RecordWriter, Terminal
from tightgrad.sync.choose import choose
from tightgrad.sync.complex_parameters import check_no_complex
from tightgrad.sync.drift import has_replicas
from tightgrad.sync.handshake import check_ranks_agree
from tightgrad.version import __version__


def attach(
    model: nn.Module,
    optimizer: optim.Optimizer | Sequence[optim.Optimizer],
    plan: Plan,
    *,
    weight: Weight | None = None,
    seed: int = 0,
    collective: Collective | None = None,
    scheduler: optim.lr_scheduler.LRScheduler | Sequence[optim.lr_scheduler.LRScheduler] | None = None,
    records: Sequence[RecordWriter] = (),
    progress: bool = False,
    scaler: GradScaler | None = None,
    before_clip: Callable[[Grads], None] | None = None,
    check: LossOf | None = None,
    measure: bool = False,
) -> GradientPipeline:
    """Put a plan between `loss.backward()` and `optimizer.step()`. Collective: every rank must call it.

    Args:
        model: a plain module, or one in DistributedDataParallel or `fully_shard`. Without `compress` in the plan these
            sum over ranks by themselves, overlapped with backward; with it the pipeline does, after the last backward
            or, with `overlap="backward"`, during it.
        optimizer: a torch optimizer over the model's parameters; one that takes a closure, such as LBFGS or SAM, steps
            in `pipe.run` only. Or a list of several, such as Muon for matrices and AdamW for the rest, each with
            parameters of its own. They are one step: one guard, one norm (`clip.PerOptimizer` takes a norm for each),
            and each steps once a window, in this order. A trainable parameter that none holds is never stepped, and
            rank 0 warns of it.
        plan: what to run; the empty plan is bitwise plain PyTorch. For a plain module and a `collective` of several
            ranks it gets a `Guard`, since there the pipeline has to sum gradients over ranks.
        weight: what a batch counts: the number that its loss is averaged over, such as its number of tokens (without
            the first of each sequence, where the model shifts its labels itself); called when the batch is fetched.
            None counts samples if the plan accumulates, and asks where a batch leaves that in doubt. Class weights in
            the loss do not show in a batch: torch's cross entropy is compared with the weights of the first windows,
            and a warning says what differs; other losses are not seen. If the plan does not accumulate, every rank's
            loss counts the same, as under plain DDP.
        seed: of all random numbers that methods draw.
        collective: the data-parallel ranks; None takes DDP's process group, or one process for a plain module.
        scheduler: of this optimizer, or a list of those of several optimizers; steps after each applied step, and only
            then. ReduceLROnPlateau is given the window's loss over all ranks, so that all ranks lower the rate together
            (its patience counts steps); an empty plan then has a `Guard`. None leaves schedules to the caller.
        records: writers of the steps' records, such as `tg.records.Jsonl(folder)`; `tightgrad doctor` reads them.
        progress: whether rank 0 shows the last step in a line on stderr.
        scaler: torch's dynamic loss scale. Give `backward` the loss as it is: the pipeline scales, unscales once
            before the codec and the clip, skips and updates, and until `pipe.close()` a call of the scaler's own
            `scale`, `unscale_`, `step` or `update` is an error. An empty plan then has a `Guard`.
        before_clip: is called once a step with the gradients by parameter name, summed over ranks and decompressed,
            before their norm is taken and they are clipped. It may change the tensors in place, in the same way on
            every rank; sharded ones are DTensors. Frozen parts, gradient noise or a projection have their place here.
            An empty plan then has a `Guard`.
        check: gives a batch's loss, as `backward` takes it: in the first window, before anything is stepped, one batch
            is compared with its halves, as `tg.check_loss` does, and what is no weighted mean of per-sample terms is an
            error. None checks only what `pipe.run` cuts.
        measure: whether records have loss and gradient norm under an empty plan too, which reads the gradients once
            more and waits for the device in each step; on every rank if any says so. Other plans measure them anyway.

    Raises:
        ConfigError: an argument is not what is asked for; the message says what to write.
        UsageError: an optimizer holds none of the model's parameters, or others, or those of another optimizer.
        UnsupportedError: the model's wrapper is not supported, or cannot do what the plan asks; a plan that does
            not go with an optimizer that needs a closure; or an optimizer or a scheduler whose step() needs something
            else.
        IncompatiblePlanError: the plan does not go with the scaler.
        RankMismatchError: the ranks came with different plans, models, seeds or versions.

    Warns:
        TightGradWarning: on rank 0, of BatchNorm layers in training mode where a window may have several micro-batches,
            and of trainable parameters that no optimizer holds. In the first window, if it cannot be
            told whether the loss given by `check` is such a mean.

    Examples:
        >>> import torch, tightgrad as tg
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=2), clip=tg.clip.GlobalNorm(1.0))
        >>> pipe = tg.attach(model, optimizer, plan)
        >>> for window in pipe.windows([torch.ones(3, 4), torch.ones(5, 4)]):
        ...     for batch in window:
        ...         pipe.backward(model(batch).square().mean())
        ...     record = pipe.step()
        >>> record.weight, record.micro_batches
        (8.0, 2)
    """
    check_integer("seed", seed, low=0)
    check_model(model)
    optimizers = checked_optimizers(optimizer)
    check_plan(plan)
    check_weight(weight)
    schedulers = checked_schedulers(scheduler, optimizers)
    check_scaler_is_fresh(scaler)
    records = checked_records(records)
    scaling = loss_scaling(plan, scaler)
    check_callable("before_clip", before_clip, "of the gradients by name")
    check_callable("check", check, "of a batch, which gives its loss")
    closing = any(map(needs_closure, optimizers))
    measures = scaling is not None or before_clip is not None or any(map(needs_metric, schedulers))
    if plan.is_empty and (measures or closing):
        plan = replace(plan, guard=Guard())
    clock = StageClock()
    adapter, sync = choose(model, plan.resolved(), collective, seed=seed, clock=clock, only=held_by_any(optimizers))
    if plan.is_empty and not adapter.reduces and adapter.collective.world_size > 1:
        plan = replace(plan, guard=Guard())  # an empty plan sums nothing, and here nobody else does
    resolved = plan.resolved()
    if resolved.guard.compare_every and not _can_drift(adapter):
        raise UnsupportedError(
            "compare_every looks for ranks that differ where they should be the same, but here every rank holds "
            "another part of each parameter; leave it out."
        )
    if resolved.accumulate.fetch == "batch" and _waits_in_layers(adapter, model):
        raise UnsupportedError(
            'fetch="batch" lets a rank run out of batches while others go on, and these would wait for it in the '
            'backward of a SyncBatchNorm; take fetch="window", or let the wrapper reduce (no compress, or overlap='
            '"backward"), which repeats batches.'
        )
    scale = "none" if scaling is None else repr(scaling.current({}))
    held = described(optimizers, adapter.parameters)
    ranks = adapter.collective
    check_closure(optimizers, plan, is_sharded=any(map(is_dtensor, adapter.parameters.values())))
    check_ranks_agree(plan, adapter.parameters, seed, ranks, __version__, loss_scale=scale, optimizers=held)
    check_no_complex(resolved.compress, adapter.parameters)
    resolved = resolved.for_optimizers(lambda: held_names(optimizers, adapter.parameters))
    fold = folding(plan.clip, optimizers, adapter.parameters)
    compares = not plan.is_empty
    premises = Premises(model, optimizers, adapter, resolved.accumulate, stacklevel=2, check=check, compares=compares)
    adapter.connect()
    sync.connect()
    state = PipelineState(adapter.remembered_shapes)
    ownership = Ownership(adapter, optimizers, watches=not plan.is_empty)
    if scaler is not None and scaler.is_enabled():
        guard_scaler(scaler, ownership)
    parts = Parts(
        adapter=adapter,
        sync=sync,
        plan=resolved,
        state=state,
        buffer=GradientBuffer(adapter.parameters),
        delivery=Delivery(adapter, resolved, state, clock, multiplied if closing else fold, scaling),
        optimizer=OptimizerStep(optimizers, schedulers, ownership),
        ownership=ownership,
        premises=premises,
        clock=clock,
        scaling=scaling,
        check=DenominatorCheck(ranks.world_size),
        measures=plan.is_empty and agreed_on_any(measure, ranks),  # the norm of sharded gradients needs all ranks
        before_clip=before_clip,
    )
    return GradientPipeline(parts, plan, weight, [*records, Terminal()] if progress else records)


def _waits_in_layers(adapter: Adapter, model: nn.Module) -> bool:
    """Whether layers wait for ranks that the adapter does not need."""
    return adapter.collective.world_size > 1 and not adapter.every_rank_runs and has_synced_layers(model)


def _can_drift(adapter: Adapter) -> bool:
    return has_replicas(adapter.parameters, max(2, adapter.collective.world_size))
