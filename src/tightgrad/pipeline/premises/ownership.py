"""Which pipeline may use a model's gradients and step its optimizer: one at a time."""

import itertools
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from tightgrad.accumulate.loss_graph.terms import parameters_of
from tightgrad.adapters.plain import Adapter
from tightgrad.core.errors import UsageError
from tightgrad.core.notices import first_few, named, warn
from tightgrad.core.placement import is_dtensor
from tightgrad.pipeline.premises.gradient_watch import GradientWatch, foreign_change
from tightgrad.pipeline.premises.state_init import is_initialising_state

_CLOSED = "this pipeline is closed; call attach() again to go on training with a plan."
_WRITE_INSTEAD = (
    "Write pipe.backward(loss) for loss.backward() and pipe.step() for optimizer.step(), inside `for window in "
    "pipe.windows(loader):`, or call pipe.close() first to take the optimizer back."
)
_ATTACHED_AGAIN = (
    "this pipeline no longer owns the gradients of its model, because attach() was called again on the model; use the "
    "pipeline that the last attach() gave."
)


class StepGuard:
    """The hook that `attach` puts on an optimizer: `optimizer.step()` from outside of the pipeline is an error.

    It neither reads nor writes gradients or weights, so a clip factor may still be folded into the step. Copied or
    pickled, it guards nothing.

    Args:
        ownership: of the pipeline that steps the optimizer; held weakly. None guards nothing.
    """

    reads_gradients = False

    def __init__(self, ownership: "Ownership | None" = None) -> None:
        self._ownership = (lambda: None) if ownership is None else weakref.ref(ownership)

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Raise `UsageError` unless the pipeline itself steps, is closed, or is gone, or a checkpoint makes the
        optimizer's state.
        """
        ownership = self._ownership()
        if ownership is not None and not ownership.is_stepping and not is_initialising_state():
            raise UsageError(
                f"{type(optimizer).__name__}.step() was called from outside, but a TightGrad pipeline steps this "
                f"optimizer; the plan would be left out. Nothing has been changed. {ownership.write_instead}"
            )

    def __reduce__(self) -> tuple[type["StepGuard"], tuple[()]]:
        return StepGuard, ()


class Ownership:
    """Holds a pipeline's claim on the gradients of its parameters, and on its optimizers.

    Ends with `release`, with the pipeline's life, or when `attach` is called again on the same model.

    Args:
        adapter: of the model.
        optimizers: that the pipeline steps.
        watches: whether gradients changed by others and `optimizer.step()` from outside are errors; not so under an
            empty plan, which is plain PyTorch.

    Raises:
        UsageError: another living pipeline owns some of the parameters, and others of its own as well.

    Attributes:
        write_instead: of a step from outside; a framework has words of its own.
        is_stepping: whether the pipeline is stepping an optimizer right now.
    """

    def __init__(self, adapter: Adapter, optimizers: Sequence[Optimizer], *, watches: bool) -> None:
        self.is_stepping = False
        self.write_instead = _WRITE_INSTEAD
        self._adapter = adapter
        self._watches = watches
        self._watch = GradientWatch(adapter)
        self._names = {id(parameter): name for name, parameter in adapter.parameters.items()}
        self._lost: str | None = None
        self._last_backward = (0, 0)
        self._others: list[str] | None = None
        with _LOCK:
            others = _sharing(self)
            for other in others:
                other._lose(_ATTACHED_AGAIN)
            _LIVING.add(self)
        found = [_registered(optimizer, StepGuard(self)) for optimizer in optimizers] if watches else []
        self._guards = [handle for handle in found if handle is not None]
        for handle in self._guards:
            weakref.finalize(self, handle.remove).atexit = False

    def check(self) -> None:
        """Raise `UsageError` if the pipeline was closed, or `attach` was called again."""
        if self._lost is not None:
            raise UsageError(self._lost)

    @property
    def is_held(self) -> bool:
        """Tell whether the pipeline still owns its gradients."""
        return self._lost is None

    def release(self) -> None:
        """Give model and optimizers back, if they have not been taken over."""
        if self.is_held:
            self._adapter.release()
        self._lose(_CLOSED)

    def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        _LIVING.discard(self)
        for handle in self._guards:
            handle.remove()

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Let the optimizers be stepped within."""
        before, self.is_stepping = self.is_stepping, True
        try:
            yield
        finally:
            self.is_stepping = before

    def watch_grads(self) -> None:
        """Take gradients as they are now for the pipeline's own; nobody else may change them from here on."""
        if self._watches:
            self._last_backward = (threading.get_ident(), next(_BACKWARDS))
            self._watch.remember()

    def check_grads(self) -> None:
        """Raise `UsageError` if gradients were changed by others since `watch_grads`."""
        found = self._watch.changes()
        if found:
            raise foreign_change(found, self._another_ran_since)

    def take_grads(self) -> None:
        """Let the pipeline change them. Raises as `check` and `check_grads` do."""
        self.check()
        self.check_grads()
        self._watch.forget()

    def forget_grads(self) -> None:
        """Forget the gradients of a window that is over."""
        self._watch.end_window()

    def look_for_others(self, losses: Iterable[Tensor]) -> None:
        """Take note, in the first backward, of parameters that get gradients from these losses and that no pipeline
        has.
        """
        if self._others is None:
            with _LOCK:
                known = frozenset[int]().union(*(one._names.keys() for one in _LIVING))
            speaks = self._adapter.collective.rank == 0 and not any(map(is_dtensor, self._adapter.parameters.values()))
            # The forward of sharded parameters takes gathered ones; a loss of others alone is told of at the step.
            found = list(parameters_of(losses)) if speaks else []
            has_own = any(id(parameter) in self._names for parameter in found)
            self._others = [str(tuple(p.shape)) for p in found if has_own and id(p) not in known]

    def warn_of_others(self, change: str, stacklevel: int) -> None:
        """Warn, once, that gradients of others' parameters were not multiplied as the pipeline's own were when N turned
        out to be another.
        """
        shapes, self._others = self._others, []
        if not shapes:
            return
        warn(
            f"the loss also depends on {len(shapes)} parameter(s) that no pipeline steps (shapes "
            f"{first_few(shapes, 3)}), and their gradients are not those of the big batch: batches are fetched one at "
            f"a time, N has changed {change} since the window's first backward, and only this pipeline's own gradients "
            "were corrected for that. If another optimizer steps these parameters, attach one module that has them "
            'all, with all optimizers in a list, or use Accumulate(fetch="window"); if none does, freeze them with '
            "requires_grad_(False), or ignore this TightGradWarning.",
            stacklevel + 1,
        )

    def _another_ran_since(self) -> bool:
        """Whether another pipeline's backward ran in this thread after this one's last."""
        _thread, mine = self._last_backward
        here = threading.get_ident()
        with _LOCK:
            last = [other._last_backward for other in _LIVING if other is not self]
        return any(number > mine for other_thread, number in last if other_thread == here)


_LIVING: "weakref.WeakSet[Ownership]" = weakref.WeakSet()
_LOCK = threading.RLock()
_BACKWARDS = itertools.count(1)


def _sharing(claim: Ownership) -> list[Ownership]:
    """Living pipelines over the same parameters, or over some or more of them.

    Raises:
        UsageError: one has some of the parameters, and others that `claim` has not.
    """
    others = []
    for other in _LIVING:
        shared = claim._names.keys() & other._names.keys()
        if not shared:
            continue
        if len(shared) < min(len(claim._names), len(other._names)):
            names = [claim._names[key] for key in claim._names if key in shared]
            raise UsageError(
                f"another pipeline already owns the gradients of {named(names)}, which both models share: each would "
                "add to what the other has accumulated. Attach one module that holds both models, with their "
                "optimizers in a list, or call close() on the other pipeline first."
            )
        others.append(other)
    return others


def _registered(optimizer: Optimizer, guard: StepGuard) -> RemovableHandle | None:
    """Put the guard on what is stepped in the end; None if that takes no hooks."""
    inner = getattr(optimizer, "optimizer", None)  # Accelerate's wrapper
    stepped = inner if isinstance(inner, Optimizer) else optimizer
    try:
        handle: RemovableHandle = stepped.register_step_pre_hook(guard)
    except AttributeError:  # an object of one's own, or one that has skipped Optimizer.__init__
        return None
    return handle
