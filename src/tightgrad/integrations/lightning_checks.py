"""What a Lightning trainer or module brings that would act on gradients beside the plan: taken over, or refused before
training begins.
"""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, GradientAccumulationScheduler
from lightning.pytorch.utilities.model_helpers import is_overridden

from tightgrad.clip import GlobalNorm, Value
from tightgrad.core.errors import ConfigError, UnsupportedError, UsageError
from tightgrad.core.protocols import Clipper
from tightgrad.integrations.foreign import with_clip, with_micro_batches
from tightgrad.plan.plan import Plan

OWN_LOOP = "write the loop yourself with tightgrad.attach"


def check_supported(trainer: Trainer, module: LightningModule) -> None:
    """Raise if anything replaces a part of the backward or the step that the pipeline runs itself.

    Raises:
        UsageError: the trainer is of the package pytorch_lightning.
        UnsupportedError: a loss scaler, a strategy, a precision plugin, a callback or a method of the module.
    """
    if not isinstance(trainer, Trainer):
        raise UsageError(
            f"TightGrad is a callback of lightning.pytorch, but the trainer is {type(trainer).__module__}."
            f"{type(trainer).__name__}; write `import lightning.pytorch as pl` in place of `import pytorch_lightning "
            "as pl`, also where the LightningModule is defined."
        )
    _check_precision(trainer)
    _check_strategy(trainer)
    if is_overridden("backward", module, LightningModule):
        raise UnsupportedError(
            f"{type(module).__name__} overrides backward(), which TightGrad would not call: the pipeline scales the "
            "loss and runs its backward itself. Drop the override: return from training_step the loss to run backward "
            f"on, put edits of gradients into on_before_optimizer_step; or {OWN_LOOP}."
        )
    for callback in _all_callbacks(trainer):
        _check_callback(callback)


def _check_precision(trainer: Trainer) -> None:
    plugin = trainer.precision_plugin
    if getattr(plugin, "scaler", None) is not None:
        raise UnsupportedError(
            f'precision="{plugin.precision}" brings a GradScaler of its own; take "bf16-mixed" or "32-true".'
        )
    for name in ("backward", "optimizer_step", "clip_gradients", "clip_grad_by_norm", "clip_grad_by_value"):
        if not _is_lightnings(type(plugin), name):
            raise UnsupportedError(
                f"the precision plugin {type(plugin).__name__} has a {name}() of its own, which TightGrad would not "
                f'call; take one of Lightning\'s plugins ("32-true", "bf16-true", "bf16-mixed"), or {OWN_LOOP}.'
            )


def _check_strategy(trainer: Trainer) -> None:
    strategy = trainer.strategy
    name = type(strategy).__name__
    if strategy.handles_gradient_accumulation or "DeepSpeed" in name:
        raise UnsupportedError(
            f"{name} accumulates and clips gradients itself; take DDPStrategy or ModelParallelStrategy (FSDP2)."
        )
    for method in ("backward", "optimizer_step"):
        if not _is_lightnings(type(strategy), method):
            raise UnsupportedError(
                f"the strategy {name} has a {method}() of its own, which TightGrad would not call; take DDPStrategy or "
                "ModelParallelStrategy (FSDP2)."
            )
    if getattr(strategy, "_model_averaging_period", None) is not None:
        raise UnsupportedError(
            f"{name}(model_averaging_period={strategy._model_averaging_period}) averages weights after steps, which "
            "TightGrad would not do; leave it out, or take tightgrad.DiLoCo in a loop of your own."
        )


def _check_callback(callback: Callback) -> None:
    name = type(callback).__name__
    if isinstance(callback, GradientAccumulationScheduler):
        raise UnsupportedError(
            f"the callback {name}(scheduling={callback.scheduling}) changes accumulate_grad_batches between epochs, "
            "but a plan has one number of micro-batches for the whole fit. Remove it and pass "
            "Trainer(accumulate_grad_batches=K); or call fit once for each K; or, for a schedule in steps, "
            f"{OWN_LOOP} and Accumulate(micro_batches=((0, {max(callback.scheduling.values())}), ...))."
        )
    if isinstance(callback, BaseFinetuning):
        raise UnsupportedError(
            f"the callback {name} unfreezes parameters while training, but the plan is attached to those that are "
            "trainable when training begins. Fit twice with a trainer each, frozen first and unfrozen then; or leave "
            "all trainable and give the backbone a parameter group whose lr is 0 at first."
        )


def _is_lightnings(kind: type, method: str) -> bool:
    """Whether `kind` has this method from Lightning, so that it is known what it does."""
    return str(getattr(kind, method).__module__).startswith("lightning.")


def _all_callbacks(trainer: Trainer) -> list[Callback]:
    return list(trainer.callbacks)  # those of the module's configure_callbacks are among them


def clips_by_itself(module: LightningModule) -> bool:
    """Whether the module has its own `configure_gradient_clipping`, which Lightning calls in automatic optimization."""
    own: bool = is_overridden("configure_gradient_clipping", module, LightningModule)
    return own and module.automatic_optimization


def overriders(method: str, trainer: Trainer, module: LightningModule) -> list[str]:
    """Names of the callbacks and of the module that have this hook of their own."""
    names = [type(one).__name__ for one in _all_callbacks(trainer) if is_overridden(method, one, Callback)]
    return names + [type(module).__name__] * is_overridden(method, module, LightningModule)


def full_plan(plan: Plan, trainer: Trainer, module: LightningModule) -> Plan:
    """The plan with the trainer's accumulation and clipping.

    Raises:
        ConfigError: the plan has others.
    """
    if not module.automatic_optimization:
        steps = plan.accumulate.micro_batches if plan.accumulate else 1
        if not isinstance(steps, int):
            raise ConfigError(
                f"the plan has {plan.accumulate}, but with automatic_optimization=False every window needs the same "
                "number of batches; pass Accumulate(micro_batches=K)."
            )
        return with_micro_batches(plan, steps, "the plan")
    plan = with_micro_batches(plan, trainer.accumulate_grad_batches, "Trainer(accumulate_grad_batches)")
    if not clips_by_itself(module):
        return with_clip(plan, trainers_clip(trainer), "the Trainer")
    if plan.clip is not None:
        raise ConfigError(
            f"the plan clips with {plan.clip}, and {type(module).__name__}.configure_gradient_clipping would clip once "
            "more. Leave clip out of the plan (the module's method is called once a step, on the summed gradients), "
            "or drop the method."
        )
    return plan


def trainers_clip(trainer: Trainer) -> Clipper | None:
    """What `gradient_clip_val` and `gradient_clip_algorithm` ask for."""
    return clipper_of(trainer.gradient_clip_val, trainer.gradient_clip_algorithm)


def clipper_of(limit: float | None, algorithm: str | None) -> Clipper | None:
    """The clipper of a limit and the name of an algorithm; None where Lightning does not clip either."""
    if limit is None or limit <= 0:
        return None
    return Value(float(limit)) if algorithm == "value" else GlobalNorm(float(limit))
