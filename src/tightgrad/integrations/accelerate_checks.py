"""What an `Accelerator` is set to, or its loop does, that would act on gradients beside the plan."""

from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from torch import nn

from tightgrad.core.errors import ConfigError, UnsupportedError, UsageError
from tightgrad.core.notices import warn
from tightgrad.integrations.external_loop import ExternalLoop, check_same_number, with_micro_batches
from tightgrad.plan.plan import Plan


def check_supported(accelerator: Accelerator) -> None:
    """Raise if another part owns the gradients, or ranks split something else than data.

    Raises:
        UnsupportedError: a loss scaler, DeepSpeed, Megatron-LM, FSDP1, or tensor, context or sequence parallelism.
    """
    check_scaler(accelerator.scaler)
    owner = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}.get(accelerator.distributed_type.name)
    if owner is not None:
        raise UnsupportedError(f"{owner} owns the gradient path itself; use DDP or FSDP2 with TightGrad.")
    version = getattr(getattr(accelerator.state, "fsdp_plugin", None), "fsdp_version", 2)
    if version != 2:
        raise UnsupportedError(
            f"fsdp_version={version} is FullyShardedDataParallel (FSDP1), whose flat parameters have no gradient each; "
            "take FullyShardedDataParallelPlugin(fsdp_version=2)."
        )
    for axis in ("tp_size", "cp_size", "sp_size"):
        size = getattr(getattr(accelerator, "parallelism_config", None), axis, None) or 1
        if size > 1:
            raise UnsupportedError(
                f"ParallelismConfig({axis}={size}) lets ranks share a batch, which TightGrad would count for each; "
                "use dp_replicate_size and dp_shard_size only."
            )


def check_scaler(scaler: object) -> None:
    """Raise `UnsupportedError` if there is a scaler."""
    if scaler is not None:
        raise UnsupportedError(
            'mixed_precision="fp16" (fp16=True) brings a GradScaler of its own; take "bf16" (bf16=True), or "no" with '
            "Plan(loss_scale=LossScale(), ...) and autocast."
        )


def full_plan(plan: Plan, steps: int, settings: dict[str, Any]) -> Plan:
    """Return the plan with what a `GradientAccumulationPlugin` asks for.

    Args:
        plan: what to run.
        steps: batches that make one step.
        settings: of the plugin, by name.

    Raises:
        ConfigError: the plan has something else.
    """
    plan = with_micro_batches(plan, steps, "gradient_accumulation_steps")
    assert plan.accumulate is not None
    if not settings.get("sync_each_batch", False):
        return plan
    if plan.compress is not None or plan.accumulate.sync == "last":
        has = "compress" if plan.compress is not None else 'sync="last"'
        raise ConfigError(
            f"GradientAccumulationPlugin(sync_each_batch=True) reduces gradients after each batch, but the plan has "
            f"{has}, which does so once a window; leave one of the two out."
        )
    return replace(plan, accumulate=replace(plan.accumulate, sync="every"))


def check_even(accelerator: Any, steps: int, loader: Any, owner: Any) -> None:
    """Compare how much the ranks' loaders have, where Accelerate does not make them even. Collective then.

    Args:
        accelerator: made the loader.
        steps: batches of a window.
        loader: over which the ranks are about to iterate.
        owner: has the pipeline, which is asked for only if loaders may be uneven.

    Raises:
        UsageError: on every rank, if one would end before the others.
    """
    if accelerator.even_batches or accelerator.num_processes == 1:
        return
    adapter = owner.pipe.adapter
    most = 1 if adapter.every_rank_runs else steps  # then windows may be shorter
    keep = "Keep even_batches=True, by which Accelerate repeats samples, or pass DataLoader(..., drop_last=True)."
    check_same_number(loader, most, adapter.collective, "even_batches=False", keep)


def is_trainable(part: object) -> bool:
    """Tell whether a prepared object is a model to train, not a loss or a frozen teacher."""
    return isinstance(part, nn.Module) and any(parameter.requires_grad for parameter in part.parameters())


def check_attached(accelerator: Any) -> None:
    """Raise `UsageError` if `prepare` has not been given what the plan is attached to, so that it would never act."""
    missing = ["no model with trainable parameters"] * (not accelerator._trained)
    missing += ["no optimizer"] * (not accelerator._optimizers)
    if accelerator.loop is None:
        raise UsageError(
            f"accelerator.backward(loss) was called, but {' and '.join(missing) or 'nothing'} has come through "
            "accelerator.prepare(), so that the plan would never act. Write `model, optimizer, loader = "
            "accelerator.prepare(model, optimizer, loader)`; prepare_model, prepare_optimizer and prepare_data_loader "
            "do not attach the plan."
        )


def check_backwards(loop: ExternalLoop, due: int) -> None:
    """Raise `UsageError` if one of the first `due` batches of the window has had no backward through the pipeline."""
    if loop.num_backwards < due:
        raise UsageError(
            f"accelerator.backward(loss) was called for {loop.num_backwards} of the {loop.position} batches of this "
            "window so far, but the weights of all count. Call it for each batch that the loader gives, in place of "
            "loss.backward(), before the next batch is taken; leave a batch out with accelerator.pipe.skip() in place "
            "of backward, or in the DataLoader. If the loop takes a window's batches first to count their tokens, pass "
            "TightAccelerator(weight=lambda batch: ...) for that, take batch by batch, and give backward the mean loss."
        )


def finish(loop: ExternalLoop) -> None:
    """Look whether a window's step has come by its end. A window without any backward, such as of a loop that only
    reads, is dropped.

    Raises:
        UsageError: there were backwards and no step.
    """
    if loop.window is None or loop.num_backwards == 0:
        loop.abandon()
        return
    check_backwards(loop, loop.position)
    number = len(loop.window)
    raise UsageError(
        f"optimizer.step() was not called after the last of {number} batch{'es' * (number > 1)} that make one step "
        "(gradient_accumulation_steps). If the loop counts itself, as in `if (step + 1) % K == 0: optimizer.step()`, "
        "drop that `if` and the division of the loss by K, write TightAccelerator(..., gradient_accumulation_steps=K), "
        "and after every batch `accelerator.backward(loss); optimizer.step(); optimizer.zero_grad()`: the last two "
        "wait for the window's last batch. If this loop does not train, call model.eval() first."
    )


def tells_of_break(loop: ExternalLoop, stacklevel: int) -> bool:
    """Warn if a loop over a loader ends while batches of a window have had their backward and its step has not come;
    tell whether it did.
    """
    window, done = loop.window, loop.num_backwards
    if window is None or not done:
        return False
    warn(
        f"the loop over the training loader was left (break, return or an error) after {done} of the {len(window)} "
        "batches that make one step (gradient_accumulation_steps): their gradients are dropped, and no step is taken "
        "for them. Leave it after a step, as in `if accelerator.sync_gradients and ...: break`, or give the loader "
        "fewer batches: its last window may be shorter. This is said once.",
        stacklevel + 1,
    )
    return True
