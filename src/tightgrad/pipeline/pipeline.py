"""The gradient path, in order: accumulate, guard, reduce, clip, step."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from tightgrad.accumulate import Accumulate, Window
from tightgrad.accumulate.buffer import GradientBuffer
from tightgrad.accumulate.window import Weight, make_windows
from tightgrad.clip.norm import total_norm
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import NonFiniteGradientError, UsageError
from tightgrad.core.protocols import Adapter, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Clipped, Grads, State
from tightgrad.feedback.error_feedback import RESIDUAL
from tightgrad.pipeline.cached_norm import CachedNorm
from tightgrad.pipeline.guard import nonfinite_error, vote
from tightgrad.pipeline.plan import Compress, Plan
from tightgrad.pipeline.record import StepRecord
from tightgrad.pipeline.reduction import merge, reduce_gradients, state_norm
from tightgrad.pipeline.state import PipelineState

Batch = TypeVar("Batch")
SkipReason = Literal["nonfinite", "zero_weight"]


class GradientPipeline:
    """Runs a plan on an adapter; made by `tightgrad.attach`.

    Every rank must call `windows`, `backward` and `step` in the same order.
    """

    def __init__(
        self, adapter: Adapter, optimizer: torch.optim.Optimizer, plan: Plan, *, weight: Weight, seed: int
    ) -> None:
        self.adapter = adapter
        self.optimizer = optimizer
        self.plan = plan
        self.seed = seed
        self.state = PipelineState()
        self._accumulate = plan.accumulate or Accumulate()
        self._weight = weight if plan.accumulate else _one
        self._window: Window[Any] | None = None
        self._buffer = GradientBuffer(adapter.parameters)
        self._clock = StageClock()
        self._norm = CachedNorm(total_norm)
        self._traffic_before = adapter.collective.traffic.nbytes

    def windows(self, loader: Iterable[Batch]) -> Iterator[Window[Batch]]:
        """Cut `loader` into windows, one for each optimizer step.

        Collective: every rank must iterate. When one rank's loader ends first, its later windows are empty, and its
        part of the gradient is zero.

        Raises:
            UsageError: the previous window's `step` is missing.
        """
        if self.plan.is_empty:
            batches: Iterable[Window[Batch]] = (Window([batch], [1.0], 1.0, nullcontext) for batch in loader)
        else:
            batches = make_windows(
                loader, self._accumulate.micro_batches, self._weight, self.adapter.collective, self.adapter.window
            )
        for window in batches:
            self._open(window)
            yield window

    def _open(self, window: Window[Any]) -> None:
        if self._window is not None:
            raise UsageError("the previous window has no step(); call pipe.step() once after `for batch in window:`.")
        self._window = window

    def backward(self, loss: Tensor) -> None:
        """Scale the current micro-batch's loss so that gradients add up to the target, and run its backward.

        Args:
            loss: a scalar, reduced as the plan's `loss_reduction` says.

        Raises:
            UsageError: there is no current micro-batch, or the loss is not a scalar.
        """
        if self._window is None:
            raise UsageError("backward() needs a window; call it inside `for window in pipe.windows(loader):`.")
        if loss.dim() and loss.numel() != 1:
            raise UsageError(f"the loss has shape {tuple(loss.shape)}; reduce it to a scalar before backward().")
        weight = self._window.take_weight()
        with self._clock("backward"):
            if self.plan.is_empty:
                loss.backward()
            elif weight > 0:
                (loss * self._accumulate.loss_factor(weight, self._window.total_weight)).backward()
        with self._clock("accumulate"):
            if not self.plan.is_empty:
                self._buffer.absorb()

    def step(self) -> StepRecord:
        """Finish the window: guard, reduce, clip, optimizer step, and clear the gradients.

        Collective: every rank must call it.

        Raises:
            UsageError: there is no window, or a micro-batch's backward is missing.
            NonFiniteGradientError: inf or NaN, under the policy "raise" or after too many skips in a row.
        """
        if self._window is None:
            raise UsageError("step() needs a window; call it inside `for window in pipe.windows(loader):`.")
        window = self._window
        window.check_complete()
        try:
            outcome = self._apply(window)
        finally:
            self._buffer.clear()
            self._norm.clear()
            self._window = None
        return self._record(window, outcome)

    def _apply(self, window: Window[Any]) -> Clipped | SkipReason:
        if self.plan.is_empty:
            self._optimize({}, self.state.slots)
            return _NOTHING_CLIPPED
        if window.total_weight == 0:
            return "zero_weight"
        grads, finite = self._agree(self._buffer.grads())
        if not finite:
            return self._skip(grads)
        state = self._reduce_(grads)
        if not bool(torch.isfinite(self._norm(list(grads.values())))):
            return self._skip(grads)
        clipped = self._clip_(grads)
        self._optimize(grads, merge(state, clipped.state))
        return clipped

    def _optimize(self, grads: Grads, slots: State) -> None:
        with self._clock("optimizer"):
            self._buffer.deliver(grads)
            self.optimizer.step()
        self.state.applied(slots)

    def _agree(self, grads: Grads) -> tuple[Grads, bool]:
        """Vote; give every rank the same names, with zeros where this rank has no gradient."""
        with self._clock("guard"):
            names = list(self.adapter.parameters)
            finite = bool(torch.isfinite(self._norm(list(grads.values()))))
            outcome = vote(grads, names, finite, self.adapter.collective)
            complete = {
                name: grads[name] if name in grads else self._buffer.zeros(name)
                for name in names
                if name in outcome.used
            }
        return complete, outcome.finite

    def _reduce_(self, grads: Grads) -> State:
        """Replace each rank's gradients by their sum over ranks; return what the methods will remember."""
        collective = self.adapter.collective
        compress = self.plan.compress or _DENSE
        if collective.world_size == 1 and compress.codec is None:
            return self.state.slots
        rng = StepRng(self.seed, self.state.step, collective.rank)
        context = ReduceContext(collective, rng, self._clock)
        with torch.no_grad():
            reduced = reduce_gradients(grads, compress, self.state.slots, context)
            for name, grad in grads.items():
                grad.copy_(reduced.total[name])
        return reduced.state

    def _clip_(self, grads: Grads) -> Clipped:
        with self._clock("clip"), torch.no_grad():
            before = self._norm(list(grads.values()))
            if self.plan.clip is None:
                return Clipped(before, torch.ones_like(before))
            clipped = self.plan.clip.clip_(grads, self.adapter.parameters, self._norm, self.state.slots)
            return Clipped(before, clipped.clip_coef, clipped.state)

    def _skip(self, grads: Grads) -> SkipReason:
        assert self.plan.guard is not None
        skips, limit = self.state.consecutive_skips + 1, self.plan.guard.max_consecutive_skips
        if self.plan.guard.on_nonfinite == "skip" and skips < limit:
            self.state.consecutive_skips = skips
            return "nonfinite"
        error = nonfinite_error(grads, list(self.adapter.parameters), self.adapter.collective)
        if self.plan.guard.on_nonfinite == "skip":
            raise NonFiniteGradientError(f"{skips} steps in a row are not finite (the limit). Now: {error}")
        raise error

    def _record(self, window: Window[Any], outcome: Clipped | SkipReason) -> StepRecord:
        clipped = outcome if isinstance(outcome, Clipped) else None
        measured = clipped if clipped is not _NOTHING_CLIPPED else None
        traffic = self.adapter.collective.traffic.nbytes
        wire_bytes, self._traffic_before = traffic - self._traffic_before, traffic
        return StepRecord(
            step=self.state.step - 1 if clipped else self.state.step,
            skipped=clipped is None,
            skip_reason=outcome if isinstance(outcome, str) else None,
            grad_norm=float(measured.total_norm) if measured else None,
            clip_coef=float(measured.clip_coef) if measured and self.plan.clip else None,
            wire_bytes=None if self.plan.is_empty else wire_bytes,
            residual_norm=state_norm(self.state.slots, RESIDUAL.name),
            weight=window.total_weight,
            micro_batches=len(window),
            stage_seconds=self._clock.take(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything this rank remembers between steps: plain tensors and numbers. Differs by rank."""
        return self.state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            StateMismatchError: the state is of another version, or does not fit this plan and model.
        """
        self.state.load_state_dict(state, self.adapter.parameters, self.plan.slots)


_DENSE = Compress()
_NOTHING_CLIPPED = Clipped(torch.zeros(()), torch.ones(()))


def _one(batch: Any) -> float:
    return 1.0
