"""Accelerate's optimizers, stepping at the end of a window through the pipeline, all with the first that is asked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import optim

from tightgrad.core.errors import UnsupportedError
from tightgrad.integrations.accelerate_checks import check_backwards
from tightgrad.integrations.external_loop import ExternalLoop
from tightgrad.pipeline.premises.state_init import is_initialising_state


class TightOptimizer(AcceleratedOptimizer):
    """Steps at a window's end only, through the pipeline, to which it leaves `zero_grad` in a window."""

    loop: ExternalLoop | None
    keeps_grads: bool

    @classmethod
    def take(cls, optimizer: AcceleratedOptimizer, loop: ExternalLoop | None, *, keeps_grads: bool = False) -> None:
        """Turn a prepared optimizer into this class; it stays the object that the user and Accelerate hold. To be
        called before a schedule is put on the optimizer, which takes hold of its `step`.

        Args:
            optimizer: prepared by Accelerate.
            loop: the loop that drives the windows; None if there is none yet.
            keeps_grads: whether delivered gradients stay in `.grad` until `zero_grad`.
        """
        optimizer.__class__ = cls
        optimizer.loop = loop
        optimizer.keeps_grads = keeps_grads

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Finish the window if the current micro-batch is its last; outside of windows as Accelerate's."""
        if self.loop is not None and is_initialising_state():
            self.optimizer.step(closure)
            return
        if self.loop is not None and self.loop.has_stepped(self.optimizer):
            self._is_overflow = self.loop.record is not None and self.loop.record.skipped
            return
        if self.loop is None or self.loop.window is None:
            with self.loop.pipe.ownership.stepping() if self.loop is not None else nullcontext():
                super().step(closure)
            return
        if closure is not None:
            raise UnsupportedError("optimizer.step(closure) cannot run in a window; call backward() and step().")
        if self.loop.is_last:
            check_backwards(self.loop, self.loop.position)
            with _kept_grads(self.loop.pipe.optimizers) if self.keeps_grads else nullcontext():
                self._is_overflow = self.loop.step(self.optimizer).skipped

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Clear nothing in a window; outside of windows as Accelerate's."""
        if self.loop is not None and is_initialising_state():
            self.optimizer.zero_grad()
        elif self.loop is None or self.loop.window is None:
            super().zero_grad(set_to_none)


@contextmanager
def _kept_grads(optimizers: Sequence[optim.Optimizer]) -> Iterator[None]:
    grads: list[Any] = []

    def keep(optimizer: optim.Optimizer, *_: Any) -> None:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        grads.extend((p, p.grad.clone()) for p in held if p.grad is not None)

    with ExitStack() as hooks:
        for optimizer in optimizers:
            hooks.enter_context(optimizer.register_step_post_hook(keep))
        yield
    for parameter, grad in grads:
        parameter.grad = grad
