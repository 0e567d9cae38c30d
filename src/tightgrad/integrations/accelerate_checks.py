"""What an `Accelerator` is set to that would act on gradients beside the plan: refused before training."""

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from tightgrad.core.errors import UnsupportedError

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
