"""What may happen to a model after `attach`: layers are put in or frozen, training mode is left, or a hook takes
gradients before the pipeline does.
"""

import operator
import weakref
import zlib
from collections.abc import Iterable
from itertools import compress

from torch import nn

from tightgrad.adapters.plain import Adapter
from tightgrad.core.errors import UsageError
from tightgrad.core.notices import named, warn
from tightgrad.core.placement import is_dtensor


class ModelWatch:
    """Looks for parameters that came later or were frozen, for modules that leave training mode, and for gradients that
    a hook has cleared.

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
        self._modules = list(model.modules())
        self._modes: tuple[bool, ...] | None = None
        self._last_modes: tuple[bool, ...] | None = None
        self._is_new = False
        self._tells_of_modes = True
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
        self._frozen, self._modes, self._modules = None, None, list(self._model.modules())
        frozen = self._frozen_now() if self._adapter.needs_every_gradient else ()
        if frozen:
            raise UsageError(
                f"{named(sorted(frozen))} was frozen after the wrapper was built, which waits for the gradient "
                "of every parameter that could be trained then, and would leave others unsummed. Freeze before "
                "wrapping the model and attach(), or take DistributedDataParallel(find_unused_parameters=True)."
            )
        self._hooked = {name: hooks for name, parameter in self._parameters.items() if (hooks := _hooks(parameter))}

    def before_backward(self, stacklevel: int) -> None:
        """Look before each backward of a window, and warn, once, if training mode was left.

        Raises:
            UsageError: a parameter was frozen or unfrozen since the first.
        """
        self._look_at_modes(stacklevel + 1)
        now = self._frozen_now()
        if self._frozen is None:
            self._frozen = now
        elif changed := now ^ self._frozen:
            raise UsageError(
                f"{named(sorted(changed))} was frozen or unfrozen between two backwards of one window, and would be "
                "stepped with the gradient of a part of the micro-batches; do it between two windows."
            )

    def _look_at_modes(self, stacklevel: int) -> None:
        now = tuple([module.training for module in self._modules])
        before, self._modes = self._modes, self._modes or now
        if not self._tells_of_modes:
            return
        if before is not None and before != now:
            told = (
                f"{self._named_modules(map(operator.ne, before, now))} changed between training and evaluation mode "
                "from one micro-batch of a window to another, so dropout and normalisation differ between them. "
                "Usually an evaluation inside `for batch in window:` has left the model in evaluation mode: move it to "
                "after pipe.step(), and call model.train() when it ends. If micro-batches are meant to differ"
            )
        elif (
            self._last_modes and self._last_modes[0] and not self._model.training and self._adapter.collective.rank == 0
        ):
            told = (
                "the model was in training mode in the previous window and is in evaluation mode now: dropout is off, "
                "and running statistics are not updated. Usually model.train() is missing after an evaluation. If the "
                "model is meant to be trained in evaluation mode from here on"
            )
        else:
            return
        self._tells_of_modes = False
        warn(f"{told}, ignore this TightGradWarning.", stacklevel + 1)

    def _named_modules(self, chosen: Iterable[bool]) -> str:
        names = self._names(chosen)
        return "the model" if not names[0] else named(names)

    def _names(self, chosen: Iterable[bool]) -> list[str]:
        found = list(compress(self._modules, chosen))
        names = {id(module): name for name, module in self._model.named_modules()} if found else {}
        return [names.get(id(one), "?") for one in found]

    def end_window(self) -> None:
        """Remember the modes of a window that was stepped."""
        if self._modes is not None:
            self._last_modes, self._is_new = self._modes, True

    def take_modes(self) -> int | None:
        """Return, once, a hash of which modules were in evaluation mode in the last window that was stepped; None if
        there was none. Modules that one rank has for itself, such as a probe, are trained like those around them.
        """
        self._is_new, is_new = False, self._is_new
        in_eval = self._names(not mode for mode in self._last_modes or ())
        return zlib.crc32("\n".join(in_eval).encode()) if is_new else None

    @property
    def frozen_now(self) -> int:
        """Return a hash of which parameters are frozen."""
        return hash(tuple([parameter.requires_grad for parameter in self._parameters.values()]))

    def said(self, part: str) -> str:
        """Say what this rank has of what ranks compare in each window."""
        here = f"on this rank ({self._adapter.collective.rank})"
        if part == "frozen":
            frozen = self._frozen_now()
            return f"Frozen {here}: {named(sorted(frozen)) if frozen else 'no parameter'}."
        if part == "modes":
            in_eval = [not mode for mode in self._last_modes or ()]
            return f"In evaluation mode {here}: {self._named_modules(in_eval) if any(in_eval) else 'no module'}."
        return f"The names of modules called {here} were not kept."

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
