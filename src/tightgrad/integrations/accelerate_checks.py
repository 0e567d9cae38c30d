"""What an `Accelerator` is set to that would act on gradients beside the plan: refused before training."""

from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from tightgrad.core.errors import ConfigError, UnsupportedError, UsageError
from tightgrad.integrations.foreign import ForeignLoop, missing_backward, with_micro_batches
from tightgrad.plan.plan import Plan

OTHERS = {
    DistributedType.DEEPSPEED: "DeepSpeed",
    DistributedType.MEGATRON_LM: "Megatron-LM",
}


def check_supported(accelerator: Accelerator) -> None:
    """Raise if another part owns the gradients, or ranks split something else than data.

    Raises:
        UnsupportedError: a loss scaler, DeepSpeed, Megatron-LM, FSDP1, or tensor, context or sequence parallelism.
    """
    check_scaler(accelerator.scaler)
    owner = OTHERS.get(accelerator.distributed_type)
    if owner is not None:
        raise UnsupportedError(f"{owner} owns the gradient path itself; use DDP or FSDP2 with TightGrad.")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version != 2:
        raise UnsupportedError(
            f"fsdp_version={plugin.fsdp_version} is FullyShardedDataParallel (FSDP1), whose flat parameters have no "
            "gradient each; take FullyShardedDataParallelPlugin(fsdp_version=2)."
        )
    _check_parallelism(getattr(accelerator, "parallelism_config", None))


def check_scaler(scaler: object) -> None:
    """Raise `UnsupportedError` if there is a scaler."""
    if scaler is not None:
        raise UnsupportedError(
            'mixed_precision="fp16" (fp16=True) brings a GradScaler of its own; take "bf16" (bf16=True), or "no" with '
            "Plan(loss_scale=LossScale(), ...) and autocast."
        )


def _check_parallelism(config: Any) -> None:
    if config is None:
        return
    for axis in ("tp_size", "cp_size", "sp_size"):
        size = getattr(config, axis, 1) or 1
        if size > 1:
            raise UnsupportedError(
                f"ParallelismConfig({axis}={size}) lets ranks share a batch, which TightGrad would count for each; "
                "use dp_replicate_size and dp_shard_size only."
            )


def full_plan(plan: Plan, accelerator: Accelerator) -> Plan:
    """The plan with what the accelerator's `GradientAccumulationPlugin` asks for.

    Raises:
        ConfigError: the plan has something else.
        UnsupportedError: `sync_with_dataloader=False`.
    """
    settings = accelerator.gradient_state.plugin_kwargs
    if not settings.get("sync_with_dataloader", True):
        raise UnsupportedError(
            "GradientAccumulationPlugin(sync_with_dataloader=False) lets a window go on in the next epoch, but a "
            "window is made of one loader's batches; leave it out: a partial last window is exact here."
        )
    plan = with_micro_batches(plan, accelerator.gradient_accumulation_steps, "gradient_accumulation_steps")
    if not settings.get("sync_each_batch", False):
        return plan
    accumulate = plan.accumulate
    assert accumulate is not None
    if plan.compress is not None or accumulate.sync == "last":
        has = "compress" if plan.compress is not None else 'sync="last"'
        raise ConfigError(
            f"GradientAccumulationPlugin(sync_each_batch=True) reduces gradients after each batch, but the plan has "
            f"{has}, which does so once a window; leave one of the two out."
        )
    return replace(plan, accumulate=replace(accumulate, sync="every"))


def check_steps(plan: Plan, steps: int) -> None:
    """Raise `UsageError` if the number of steps was changed after the plan was made."""
    assert plan.accumulate is not None
    if plan.accumulate.micro_batches != steps:
        raise UsageError(
            f"accelerator.gradient_accumulation_steps was changed to {steps}, but the plan has "
            f"{plan.accumulate.micro_batches}; give the number to TightAccelerator(gradient_accumulation_steps=...)."
        )


def finish(loop: ForeignLoop) -> None:
    """At a window's end: its step must have come. A window without any backward, such as of a loop that only reads, is
    dropped.

    Raises:
        UsageError: there were backwards and no step.
    """
    if not loop.is_open or loop.num_backwards == 0:
        loop.abandon()
        return
    if loop.num_backwards < loop.position:
        raise UsageError(missing_backward(loop))
    number = loop.num_micro_batches
    raise UsageError(
        f"optimizer.step() was not called after the last of {number} batch{'es' * (number > 1)} that make one step "
        "(gradient_accumulation_steps). If the loop counts itself, as in `if (step + 1) % K == 0: optimizer.step()`, "
        "drop that `if` and the division of the loss by K, pass TightAccelerator(gradient_accumulation_steps=K), and "
        "call optimizer.step() and optimizer.zero_grad() after every batch: they wait for the last. If this loop does "
        "not train, call model.eval() first."
    )
