"""What a Lightning trainer or module brings that would act on gradients beside the plan: taken over, or refused before
training begins.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, GradientAccumulationScheduler
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from tightgrad.clip import GlobalNorm, Value
from tightgrad.core.errors import ConfigError, UnsupportedError, UsageError
from tightgrad.core.protocols import Clipper
from tightgrad.integrations.external_loop import clips_alike, with_clip, with_micro_batches
from tightgrad.plan.plan import Plan

OWN_LOOP = "write the loop yourself with tightgrad.attach"
_STRATEGIES = "take DDPStrategy or ModelParallelStrategy (FSDP2)"


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
    plugin, strategy = trainer.precision_plugin, trainer.strategy
    if getattr(plugin, "scaler", None) is not None:
        raise UnsupportedError(
            f'precision="{plugin.precision}" brings a GradScaler of its own; take "bf16-mixed" or "32-true".'
        )
    clips = ("clip_gradients", "clip_grad_by_norm", "clip_grad_by_value")
    plugins = f'take one of Lightning\'s plugins ("32-true", "bf16-true", "bf16-mixed"), or {OWN_LOOP}'
    _check_is_lightnings(plugin, "precision plugin", ("backward", "optimizer_step", *clips), plugins)
    name = type(strategy).__name__
    if strategy.handles_gradient_accumulation or "DeepSpeed" in name:
        raise UnsupportedError(f"{name} accumulates and clips gradients itself; {_STRATEGIES}.")
    _check_is_lightnings(strategy, "strategy", ("backward", "optimizer_step"), _STRATEGIES)
    if getattr(strategy, "_model_averaging_period", None) is not None:
        raise UnsupportedError(
            f"{name}(model_averaging_period={strategy._model_averaging_period}) averages weights after steps, which "
            "TightGrad would not do; leave it out, or take tightgrad.DiLoCo in a loop of your own."
        )
    if is_overridden("backward", module, LightningModule):
        raise UnsupportedError(
            f"{type(module).__name__} overrides backward(), which TightGrad would not call: the pipeline scales the "
            "loss and runs its backward itself. Drop the override: return from training_step the loss to run backward "
            f"on, put edits of gradients into on_before_optimizer_step; or {OWN_LOOP}."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise UnsupportedError(
            f"{type(module).__name__}.training_step takes dataloader_iter, and how many batches it will draw is not "
            f"known when a window begins; write training_step(self, batch, batch_idx), or {OWN_LOOP}."
        )
    unfreezing = [type(one).__name__ for one in trainer.callbacks if isinstance(one, BaseFinetuning)]
    if unfreezing and trainer.world_size > 1:
        raise UnsupportedError(
            f"the callback {unfreezing[0]} unfreezes parameters while training, but on {trainer.world_size} ranks the "
            "model was wrapped for those that are trainable when training begins. Fit twice with a trainer each, "
            "frozen first and unfrozen then; or leave all trainable and give the backbone a parameter group whose lr "
            "is 0 at first."
        )


def _check_is_lightnings(owner: Any, kind: str, methods: tuple[str, ...], instead: str) -> None:
    """Raise unless these methods come from Lightning, so that it is known what they do."""
    for method in methods:
        if not str(getattr(type(owner), method).__module__).startswith("lightning."):
            raise UnsupportedError(
                f"the {kind} {type(owner).__name__} has a {method}() of its own, which TightGrad would not call; "
                f"{instead}."
            )


def clips_by_itself(module: LightningModule) -> bool:
    """Tell whether the module has its own `configure_gradient_clipping`, which Lightning calls in automatic
    optimization.
    """
    own: bool = is_overridden("configure_gradient_clipping", module, LightningModule)
    return own and module.automatic_optimization


def overriders(method: str, trainer: Trainer, module: LightningModule) -> list[str]:
    """Return the names of the callbacks and of the module that have this hook of their own."""
    hooked = [one for one in trainer.callbacks if is_overridden(method, one, Callback)]
    return [type(one).__name__ for one in hooked + [module] * is_overridden(method, module, LightningModule)]


def full_plan(plan: Plan, trainer: Trainer, module: LightningModule) -> Plan:
    """Return the plan with the trainer's accumulation and clipping.

    Raises:
        ConfigError: the plan has others.
    """
    if not module.automatic_optimization:
        steps = plan.accumulate.micro_batches if plan.accumulate else 1
        if steps is None:
            raise ConfigError(
                f"the plan has {plan.accumulate}, but with automatic_optimization=False every window needs a number "
                "of batches; pass Accumulate(micro_batches=K)."
            )
        return with_micro_batches(plan, steps, "the plan")
    schedules = [one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]
    largest = max([trainer.accumulate_grad_batches, *(n for one in schedules for n in one.scheduling.values())])
    source = (
        "the largest number of the GradientAccumulationScheduler" if schedules else "Trainer(accumulate_grad_batches)"
    )
    plan = with_micro_batches(plan, largest, source)
    if not clips_by_itself(module):
        return with_clip(plan, clipper_of(trainer.gradient_clip_val, trainer.gradient_clip_algorithm), "the Trainer")
    if plan.clip is not None:
        raise ConfigError(
            f"the plan clips with {plan.clip}, and {type(module).__name__}.configure_gradient_clipping would clip once "
            "more. Leave clip out of the plan (the module's method is called once a step, on the summed gradients), "
            "or drop the method."
        )
    return plan


def check_clips_as_planned(given: Plan, plan: Plan, trainer: Trainer, module: LightningModule) -> None:
    """Raise `UsageError` if the trainer was set to another clipping since its own became part of the plan."""
    wanted = clipper_of(trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
    if not module.automatic_optimization or clips_by_itself(module) or wanted == plan.clip:
        return
    if given.clip is None or (wanted is not None and not clips_alike(given.clip, wanted)):
        raise UsageError(
            f"trainer.gradient_clip_val was changed when the fit had begun: it now asks for {wanted}, and the plan "
            f"clips with {plan.clip}. Pass Trainer(gradient_clip_val=...) or Plan(clip=...); a bound that follows the "
            f"norms is tg.clip.AutoClip or tg.clip.ZClip; for any other, {OWN_LOOP}."
        )


def check_asks_for_sum(trainer: Trainer, module: LightningModule) -> None:
    """Raise `UsageError` if a manual backward whose gradients are to be summed runs under DDP's `no_sync`: in manual
    optimization the backward is within DDP's forward, and what the flag says then is what counts.
    """
    if not module.automatic_optimization and not getattr(trainer.strategy.model, "require_backward_grad_sync", True):
        raise UsageError(
            "manual_backward(loss) was called under no_sync() in the last batch of a window, so its gradients would "
            "not be summed over ranks. Leave out toggle_model(sync_grad=...), strategy.block_backward_sync() and "
            "no_sync(): TightGrad sums once in each window, in its last backward. Nothing has been stepped."
        )


def clipper_of(limit: float | None, algorithm: str | None) -> Clipper | None:
    """Return the clipper of a limit and the name of an algorithm; None where Lightning does not clip either."""
    if limit is None or limit <= 0:
        return None
    return Value(float(limit)) if algorithm == "value" else GlobalNorm(float(limit))
