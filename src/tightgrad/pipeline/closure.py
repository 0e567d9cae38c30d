"""A window as the closure of an optimizer that wants loss and gradient several times in one step, as LBFGS and SAM do.

The window's gradient is there before the optimizer steps. Each call of the closure runs the window again at the weights
as they are by then: forwards, backwards, sum over ranks, guard and clip. A first call at weights that have not moved,
such as LBFGS's, finds what is there. All passes draw the same random numbers, and buffers are left as the first pass
left them. What methods remember is that of the last pass.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad.accumulate import Accumulate
from tightgrad.accumulate.split import fresh
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.global_rng import GlobalRng
from tightgrad.core.placement import local_part
from tightgrad.core.types import State
from tightgrad.pipeline.parts import Parts
from tightgrad.pipeline.premises.collaborators import needs_closure
from tightgrad.pipeline.premises.loss_premise import LossOf
from tightgrad.plan.guard import agreed_on_any
from tightgrad.plan.plan import Plan, Resolved

Again = Callable[[], tuple[Tensor, State]]
"""Runs a window anew; gives its loss over all ranks, and what the methods would remember."""


class Passes:
    """Steps an optimizer with the window as its closure.

    Args:
        parts: of the pipeline, whose gradients have been delivered.
        loss: gives that of the pass that they are of, over all ranks. Collective.
        slots: what the methods would remember of it.
        again: runs another pass. Collective.
    """

    def __init__(self, parts: Parts, loss: Callable[[], Tensor], slots: State, again: Again) -> None:
        self._parts, self._loss, self._slots, self._again = parts, loss, slots, again
        self._optimizer = parts.optimizer.optimizers[0]
        self._weights = [(p, p.detach().clone()) for p in parts.adapter.parameters.values()]
        self._memory = {key: copy.deepcopy(value) for key, value in self._optimizer.state.items()}
        self._grads = self._grads_now()
        self._is_first = True

    def step(self) -> State:
        """Step; return what the methods will remember. Collective: every rank must call it.

        Raises:
            Exception: what a pass has raised. Weights and the optimizer's memory are then as they were before.
        """
        try:
            self._parts.optimizer.step_with(self)
        except BaseException:
            self._put_back()
            raise
        return self._slots

    @torch.enable_grad()
    def __call__(self) -> Tensor:
        """Return the window's loss over all ranks, with its gradient in place. Collective."""
        is_first, self._is_first = self._is_first, False
        if is_first and not agreed_on_any(self._has_changed(), self._parts.adapter.collective):
            return self._loss()
        check_repeats(self._parts.plan, self._optimizer)
        loss, self._slots = self._again()
        return loss

    def _grads_now(self) -> list[tuple[int, int]]:
        return [(id(p.grad), -1 if p.grad is None else p.grad._version) for p, _ in self._weights]

    def _has_changed(self) -> bool:
        """Whether weights or gradients are others. Writes through `.data` are not counted, so values are compared."""
        if self._grads_now() != self._grads:
            return True
        return not all(torch.equal(local_part(p.detach()), local_part(before)) for p, before in self._weights)

    @torch.no_grad()
    def _put_back(self) -> None:
        for parameter, before in self._weights:
            parameter.copy_(before)
        self._optimizer.state.clear()
        self._optimizer.state.update(self._memory)


@contextmanager
def repeating(model: nn.Module, start: GlobalRng) -> Iterator[None]:
    """Draw the random numbers that were drawn from `start` on, and leave generators and buffers as they are now."""
    now, buffers = GlobalRng.now(), [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    start.restore()
    try:
        yield
    finally:
        now.restore()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def repeatable(loss_of: LossOf, optimizer: Any) -> LossOf:
    """Return a function that gives `loss_of` a copy of each batch, which it may change, where batches run again.

    An optimizer of torch's that does not need a closure calls it at the same weights, at which nothing runs again.
    """
    if type(optimizer).__module__.startswith("torch.optim.") and not needs_closure(optimizer):
        return loss_of
    return lambda batch: loss_of(fresh(batch))


def check_closure(optimizers: tuple[Any, ...], plan: Plan, *, is_sharded: bool) -> None:
    """Raise unless the plan can be run with an optimizer that needs a closure, if one does.

    Args:
        optimizers: of the pipeline.
        plan: to be run.
        is_sharded: whether ranks hold parts of parameters.

    Raises:
        UnsupportedError: it cannot; the message says what to change.
    """
    closing = next(filter(needs_closure, optimizers), None)
    if closing is None:
        return
    kind = type(closing).__name__
    if len(optimizers) > 1:
        raise UnsupportedError(
            f"{kind} needs a closure, which moves weights and takes gradients anew in the middle of its step, so it "
            "cannot step together with other optimizers; give it all parameters: attach(model, optimizer, plan)."
        )
    if is_sharded:
        raise UnsupportedError(
            f"{kind} needs a closure, and under fully_shard its step would see only a part of each parameter; take "
            "DistributedDataParallel, or an optimizer whose step() needs no closure, such as torch.optim.AdamW."
        )
    accumulate = plan.accumulate or Accumulate()
    if accumulate.fetch == "batch" and accumulate.several_backwards:
        raise UnsupportedError(
            f'{kind} needs a closure that runs a window several times, for which its batches are kept; fetch="batch" '
            'keeps one. Take Accumulate(fetch="window"), or fetch="auto".'
        )
    check_repeats(plan.resolved(), closing)


def check_repeats(plan: Resolved, optimizer: Any) -> None:
    """Raise `UnsupportedError` if what is sent in one pass would be missing in the next."""
    if any(slot.across_ranks == "sum" for slot in plan.slots.values()):
        raise UnsupportedError(
            f"{type(optimizer).__name__} takes several gradients in one step, and error feedback would add to each "
            "what was left out of another; drop feedback from Compress, with a codec that needs none, such as "
            'tg.Compress(tg.codecs.Cast("bfloat16")), or take an optimizer whose step() needs no closure.'
        )
