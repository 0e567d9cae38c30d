"""Accelerate's optimizer, stepping at the end of a window through the pipeline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn, optim

from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.integrations.foreign import ForeignLoop, missing_backward


class TightOptimizer(AcceleratedOptimizer):
    """In a window, `step` runs after the last micro-batch only, and `zero_grad` is left to the pipeline."""

    loop: ForeignLoop | None
    keeps_grads: bool

    @classmethod
    def take(cls, optimizer: AcceleratedOptimizer, loop: ForeignLoop | None, *, keeps_grads: bool = False) -> None:
        """Turn a prepared optimizer into this class; it stays the object that the user and Accelerate hold. To be
        called before a schedule is put on the optimizer, which takes hold of its `step`.

        Args:
            optimizer: prepared by Accelerate.
            loop: that walks the windows; None if there is none yet.
            keeps_grads: whether delivered gradients stay in `.grad` until `zero_grad`.
        """
        optimizer.__class__ = cls
        optimizer.loop = loop
        optimizer.keeps_grads = keeps_grads

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Finish the window if the current micro-batch is its last; outside of windows as Accelerate's."""
        if self.loop is None or not self.loop.is_open:
            with self.loop.pipe.ownership.stepping() if self.loop is not None else _nothing():
                super().step(closure)
            return
        if closure is not None:
            raise UnsupportedError("optimizer.step(closure) cannot run in a window; call backward() and step().")
        if self.loop.is_last:
            if self.loop.num_backwards < self.loop.position:
                raise UsageError(missing_backward(self.loop))
            with _kept_grads(self.optimizer) if self.keeps_grads else _nothing():
                self._is_overflow = self.loop.step().skipped

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Nothing in a window; outside of windows as Accelerate's."""
        if self.loop is None or not self.loop.is_open:
            super().zero_grad(set_to_none)


@contextmanager
def _kept_grads(optimizer: optim.Optimizer) -> Iterator[None]:
    grads: list[tuple[nn.Parameter, Tensor]] = []

    def keep(stepped: optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = (parameter for group in stepped.param_groups for parameter in group["params"])
        grads.extend((parameter, parameter.grad.clone()) for parameter in parameters if parameter.grad is not None)

    handle = optimizer.register_step_post_hook(keep)
    try:
        yield
    finally:
        handle.remove()
    for parameter, grad in grads:
        parameter.grad = grad


@contextmanager
def _nothing() -> Iterator[None]:
    yield
