"""The hooks of callbacks and modules between backward and step, called where Lightning calls them: on gradients that
are complete and summed over ranks.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

# Private, and the only way to have `self.log` work in a hook: it sets the name of the hook that is running.
from lightning.pytorch.trainer.call import _call_callback_hooks, _call_lightning_module_hook
from torch import Tensor, nn, optim

from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import Grads
from tightgrad.integrations.foreign import ForeignLoop, clips_alike
from tightgrad.integrations.lightning_checks import clipper_of, clips_by_itself, overriders
from tightgrad.pipeline.pipeline import GradientPipeline

EARLY = "on_after_backward"
LATE = "on_before_optimizer_step"


class StepHooks:
    """Calls the hooks of one fit, from `install` to `remove`.

    Raises:
        UnsupportedError: `on_after_backward` is overridden where it would see no gradients.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, loop: ForeignLoop) -> None:
        self._trainer = trainer
        self._module = module
        self._loop = loop
        self._pipe: GradientPipeline = loop.pipe
        self._optimizer: optim.Optimizer = loop.pipe.optimizer
        self._early = overriders(EARLY, trainer, module)
        self._is_clipping = False
        self._handles: list[Any] = []
        self._check_early()

    def _check_early(self) -> None:
        if self._early and self._pipe.parts.buffer.absorbs:
            raise UnsupportedError(
                f"{' and '.join(self._early)} overrides {EARLY}, which would see no gradients: those of bfloat16 and "
                f"float16 parameters are summed in float32 elsewhere. Override {LATE}, which sees the sum."
            )

    def install(self) -> None:
        """From now on, call hooks at the pipeline's steps."""
        if overriders(LATE, self._trainer, self._module):
            self._pipe.parts.before_clip = self._before_clip
        if clips_by_itself(self._module):
            self._handles.append(self._optimizer.register_step_pre_hook(self._configured_clipping))
        for optimizer in self._optimizers():
            _keep_in_windows(optimizer, self._loop)
        plugin = self._trainer.precision_plugin
        original = plugin.clip_gradients
        plugin.clip_gradients = lambda *args, **kwargs: self._clip_gradients(original, *args, **kwargs)

    def remove(self) -> None:
        """Give back everything that was replaced."""
        self._pipe.parts.before_clip = None
        self._trainer.precision_plugin.__dict__.pop("clip_gradients", None)
        for optimizer in self._optimizers():
            optimizer.__dict__.pop("zero_grad", None)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _optimizers(self) -> tuple[Any, ...]:
        """Return the optimizer, and what `self.optimizers()` gives for it.

        Private, lightning 2.0 to 2.6: the public way wants a fit under way.
        """
        return self._optimizer, *self._trainer.strategy._lightning_optimizers

    def _before_clip(self, grads: Grads) -> None:
        with torch.enable_grad(), shown(grads, self._pipe.adapter.parameters):
            _call_callback_hooks(self._trainer, LATE, self._optimizer)
            _call_lightning_module_hook(self._trainer, LATE, self._optimizer)

    def _configured_clipping(self, optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
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
        if wanted is not None and not clips_alike(self._pipe.plan.clip, wanted):
            raise UsageError(_other_clip(wanted, self._pipe.plan.clip))

    @contextmanager
    def around_backward(self, loss: Tensor) -> Iterator[Tensor]:
        """Call the hooks before and after a micro-batch's backward; gives the loss to run it on.

        Raises:
            UsageError: a hook has changed gradients that are not summed over ranks yet.
        """
        plugin = self._trainer.precision_plugin
        yield plugin.pre_backward(loss, self._module)
        before = self._versions()
        plugin.post_backward(loss, self._module)
        changed = [name for name, version in self._versions().items() if before[name] != version]
        if changed:
            raise UsageError(
                f"{' or '.join(self._early)} has changed the gradient of {changed[0]!r} in {EARLY}. With compress in "
                f"the plan this is one rank's own part of it, before compression. Change it in {LATE}, which sees "
                "gradients summed over ranks, once a step."
            )
        if self._early:
            self._pipe.ownership.leave_grads()  # as the hook has changed them

    def _versions(self) -> dict[str, tuple[int, int]]:
        """Of the gradients that hooks may not change yet."""
        if not self._early or self._pipe.plan.compress is None:
            return {}
        parameters = self._pipe.adapter.parameters.items()
        return {name: (id(p.grad), -1 if p.grad is None else p.grad._version) for name, p in parameters}


def _keep_in_windows(optimizer: Any, loop: ForeignLoop) -> None:
    """Leave the window's gradients to the pipeline: `zero_grad` of a manual step comes before each batch's backward."""
    clear = optimizer.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        if not loop.is_open:
            clear(set_to_none=set_to_none)

    optimizer.zero_grad = zero_grad


def _other_clip(wanted: Clipper, planned: Clipper | None) -> str:
    return (
        f"the module calls clip_gradients for {wanted}, but the plan clips with {planned}: gradients are clipped once, "
        "by the plan, after they are summed. Put the same clipping into the plan, or drop the call."
    )


@contextmanager
def shown(grads: Grads, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within, each parameter's `.grad` is its gradient in `grads`, and what is changed there is changed in `grads`.

    Args:
        grads: by name, of any floating dtype; changed in place.
        parameters: by name; `.grad` has the parameter's own dtype.
    """
    given = {}
    for name, parameter in parameters.items():
        grad = grads.get(name)
        parameter.grad = None if grad is None else grad.to(parameter.dtype)
        given[name] = (id(parameter.grad), _version(parameter.grad))
    yield
    for name, parameter in parameters.items():
        now = parameter.grad
        if now is None:
            grads.pop(name, None)
        elif (id(now), _version(now)) != given[name]:
            own = grads.get(name)
            grads[name] = now if own is None else now.to(own.dtype)


def _version(grad: Tensor | None) -> int:
    local = getattr(grad, "_local_tensor", grad)  # a DTensor's own counter does not follow its shard's
    return -1 if local is None else local._version
