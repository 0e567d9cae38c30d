"""The hooks of callbacks and modules between backward and step, called where Lightning calls them: on gradients that
are complete and summed over ranks.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

# Private, and the only way to have `self.log` work in a hook: it sets the name of the hook that is running.
from lightning.pytorch.trainer.call import _call_callback_hooks, _call_lightning_module_hook
from torch import Tensor, nn, optim

from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.types import Grads
from tightgrad.integrations.external_loop import ExternalLoop, check_clips_alike
from tightgrad.integrations.lightning_checks import clipper_of, clips_by_itself, overriders
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.premises.state_init import is_initialising_state

EARLY = "on_after_backward"
LATE = "on_before_optimizer_step"


class StepHooks:
    """Calls the hooks of one fit, from `install` to `remove`, at the steps of the pipeline that it serves."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        self._module = module
        self._optimizers: list[optim.Optimizer] = trainer.optimizers
        self._early = overriders(EARLY, trainer, module)
        self._dropped: list[nn.Parameter] = []
        self.before_clip = self._before_clip if overriders(LATE, trainer, module) else None
        self._is_clipping = False
        self._undo = ExitStack()

    def serve(self, pipe: GradientPipeline) -> None:
        """Call the hooks at this pipeline's steps, and at no other's.

        Raises:
            UnsupportedError: `on_after_backward` is overridden where it would see no gradients.
        """
        if self._early and pipe.parts.buffer.absorbs:
            raise UnsupportedError(
                f"{' and '.join(self._early)} overrides {EARLY}, which would see no gradients: those of bfloat16 and "
                f"float16 parameters are summed in float32 elsewhere. Override {LATE}, which sees the sum."
            )
        self._pipe = pipe

    def install(self, loop: ExternalLoop) -> None:
        """Call hooks from now on, and keep the window's gradients from `zero_grad`: that of a manual step comes before
        each batch's backward.
        """
        if self.before_clip is not None or clips_by_itself(self._module):
            self._undo.callback(self._optimizers[0].register_step_pre_hook(self._before_step).remove)
        # Private, lightning 2.0 to 2.6: what `self.optimizers()` gives; the public way wants a fit under way.
        for optimizer in (*self._optimizers, *self._trainer.strategy._lightning_optimizers):
            self._replace(optimizer, "zero_grad", _between_windows(optimizer.zero_grad, loop))
        if not self._module.automatic_optimization:  # Lightning counts no batches then, and clears before validation
            clear = self._module.on_validation_model_zero_grad
            self._replace(self._module, "on_validation_model_zero_grad", _between_windows(clear, loop))
        plugin = self._trainer.precision_plugin
        self._replace(plugin, "clip_gradients", partial(self._clip_gradients, plugin.clip_gradients))

    def _replace(self, owner: Any, name: str, method: Any) -> None:
        setattr(owner, name, method)
        self._undo.callback(owner.__dict__.pop, name, None)

    def remove(self) -> None:
        """Give back everything that was replaced."""
        self._undo.close()

    def _before_clip(self, grads: Grads) -> None:
        with torch.enable_grad(), shown(grads, self._pipe.adapter.parameters) as self._dropped:
            for optimizer in self._optimizers:
                _call_callback_hooks(self._trainer, LATE, optimizer)
                _call_lightning_module_hook(self._trainer, LATE, optimizer)

    def _before_step(self, optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
        if is_initialising_state():
            return
        for parameter in self._dropped:
            parameter.grad = None
        if not clips_by_itself(self._module):
            return
        self._is_clipping = True
        try:
            _call_lightning_module_hook(
                self._trainer,
                "configure_gradient_clipping",
                optimizer,
                gradient_clip_val=self._trainer.gradient_clip_val,
                gradient_clip_algorithm=self._trainer.gradient_clip_algorithm,
            )
        finally:
            self._is_clipping = False

    def _clip_gradients(
        self,
        original: Any,
        optimizer: optim.Optimizer,
        clip_val: float = 0.0,
        gradient_clip_algorithm: str = "norm",
    ) -> None:
        """`self.clip_gradients` of the module: left to the plan, except from `configure_gradient_clipping`."""
        if self._is_clipping:
            original(optimizer, clip_val, gradient_clip_algorithm)
            return
        wanted = clipper_of(clip_val, gradient_clip_algorithm)
        if wanted is not None:
            check_clips_alike(self._pipe.plan, wanted, "the module calls clip_gradients for")

    @contextmanager
    def around_backward(self, loss: Tensor) -> Iterator[Tensor]:
        """Call the hooks before and after a micro-batch's backward; gives the loss to run it on.

        Raises:
            UsageError: a hook has changed gradients that are not summed over ranks yet.
        """
        plugin = self._trainer.precision_plugin
        yield plugin.pre_backward(loss, self._module)
        unsummed = {} if not self._early or self._pipe.plan.compress is None else self._pipe.adapter.parameters
        before = {name: _state(parameter.grad) for name, parameter in unsummed.items()}
        plugin.post_backward(loss, self._module)
        changed = [name for name, parameter in unsummed.items() if _state(parameter.grad) != before[name]]
        if changed:
            raise UsageError(
                f"{' or '.join(self._early)} has changed the gradient of {changed[0]!r} in {EARLY}. With compress in "
                f"the plan this is one rank's own part of it, before compression. Change it in {LATE}, which sees "
                "gradients summed over ranks, once a step."
            )
        if self._early:
            self._pipe.ownership.watch_grads()  # as the hook has changed them


def _between_windows(clear: Callable[..., None], loop: ExternalLoop) -> Callable[..., None]:
    """Return what clears gradients unless a window is open, or a checkpoint does that with its own."""

    def clear_between(*args: Any, **kwargs: Any) -> None:
        if loop.window is None or is_initialising_state():
            clear(*args, **kwargs)

    return clear_between


@contextmanager
def shown(grads: Grads, parameters: Mapping[str, nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Show each parameter's gradient in `grads` as its `.grad`; what is changed there is changed in `grads`.

    Gives a list, which has afterwards the parameters whose gradient was dropped: it is 0 in `grads`.

    Args:
        grads: by name, of any floating dtype; changed in place.
        parameters: by name; `.grad` has the parameter's own dtype.
    """
    given = {}
    for name, parameter in parameters.items():
        grad = grads.get(name)
        parameter.grad = None if grad is None else grad.to(parameter.dtype)
        given[name] = _state(parameter.grad)
    dropped: list[nn.Parameter] = []
    yield dropped
    for name, parameter in parameters.items():
        now = parameter.grad
        if now is not None and _state(now) != given[name]:
            grads.setdefault(name, now).copy_(now)
        elif now is None and name in grads:
            grads[name].zero_()
            dropped.append(parameter)


def _state(grad: Tensor | None) -> tuple[int, int]:
    """What changes when the gradient is replaced or written to."""
    local = getattr(grad, "_local_tensor", grad)  # a DTensor's own counter does not follow its shard's
    return id(grad), -1 if local is None else local._version
