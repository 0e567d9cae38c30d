"""What may happen to a model after `attach`: layers are put in, or a hook takes gradients before the pipeline does."""

import weakref

from torch import nn

from tightgrad.core.errors import UsageError
from tightgrad.core.notices import named, warn
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Adapter


class ModelWatch:
    """Looks for parameters that came later or were frozen, and for gradients that a hook has cleared.

    Args:
        model: without its wrapper.
        adapter: of the model.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self._model, self._adapter, self._parameters = model, adapter, adapter.parameters
        self._speaks = adapter.collective.rank == 0
        self._frozen: set[str] | None = None
        self._known = weakref.WeakSet(model.modules())
        self._hooked: dict[str, list[object]] = {}
        shards = any(map(is_dtensor, self._parameters.values()))  # fully_shard registers other tensors around a forward
        self._ids = None if shards else set(map(id, model.parameters()))  # which Premises keeps alive

    def look(self) -> None:
        """Look again, before a window.

        Raises:
            UsageError: the model has trainable parameters that it had not when it was attached, or has frozen one whose
                gradient the wrapper waits for.
        """
        late = [
            f"{name}.{own}" if name else own
            for name, module in self._model.named_modules()
            for own, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad and self._is_late(module, parameter)
        ]
        if late:
            raise UsageError(
                f"the model has trainable parameters that it had not at attach(): {named(late)}. Their gradients "
                "would be neither summed over ranks nor clipped nor cleared. Replace layers first, give all parameters "
                "to the optimizer, and call attach() then, or again between two windows."
            )
        self._frozen = None
        frozen = self._frozen_now() if self._adapter.needs_every_gradient else ()
        if frozen:
            raise UsageError(
                f"{named(sorted(frozen))} was frozen after the wrapper was built, which waits for the gradient "
                "of every parameter that could be trained then, and would leave others unsummed. Freeze before "
                "wrapping the model and attach(), or take DistributedDataParallel(find_unused_parameters=True)."
            )
        self._hooked = {name: hooks for name, parameter in self._parameters.items() if (hooks := _hooks(parameter))}

    def before_backward(self) -> None:
        """Look before each backward of a window.

        Raises:
            UsageError: a parameter was frozen or unfrozen since the first.
        """
        now = self._frozen_now()
        if self._frozen is None:
            self._frozen = now
        elif changed := now ^ self._frozen:
            raise UsageError(
                f"{named(sorted(changed))} was frozen or unfrozen between two backwards of one window, and would be "
                "stepped with the gradient of a part of the micro-batches; do it between two windows."
            )

    def _frozen_now(self) -> set[str]:
        return {name for name, parameter in self._parameters.items() if not parameter.requires_grad}

    def after_backward(self, stacklevel: int) -> None:
        """Warn, once, if a hook has taken the gradients that backward has just made."""
        cleared = [name for name in self._hooked if self._parameters[name].grad is None]
        if not (cleared and self._speaks):
            return
        self._speaks = False
        hooks = [hook for name in cleared for hook in self._hooked[name]]
        names = ", ".join(sorted({getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks}))
        warn(
            f"{named(cleared)} had no gradient after backward, where a post-accumulate-grad hook ({names}) runs. If "
            "it steps an optimizer and clears .grad, nothing is left to accumulate, to sum over ranks or to clip: "
            "remove it and give the optimizer to attach(). What it does to gradients has its place in "
            "attach(before_clip=...), which sees those of the whole window.",
            stacklevel + 1,
        )

    def _is_late(self, module: nn.Module, parameter: nn.Parameter) -> bool:
        if module in self._known and self._ids is None:
            return False
        known = map(id, self._parameters.values()) if self._ids is None else self._ids
        return id(parameter) not in known


def _hooks(parameter: nn.Parameter) -> list[object]:
    """Return hooks of others; torch 2.9 to 2.15 have no public way to read them."""
    hooks = parameter._post_accumulate_grad_hooks or {}
    return [hook for hook in hooks.values() if not getattr(hook, "__module__", "").startswith("tightgrad.")]
