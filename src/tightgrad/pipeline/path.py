"""From accumulated gradients to those that the optimizer takes: guard, unscale, reduce, clip."""

from dataclasses import dataclass
from typing import Literal

import torch

from tightgrad.accumulate.buffer import zero_gradient
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import NonFiniteGradientError
from tightgrad.core.protocols import Adapter, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Clipped, Grads, State
from tightgrad.pipeline.cached_norm import CachedNorm
from tightgrad.pipeline.guard import nonfinite_error, vote
from tightgrad.pipeline.plan import Compress, Plan
from tightgrad.pipeline.reduction import merge, reduce_gradients
from tightgrad.pipeline.state import PipelineState

SkipReason = Literal["nonfinite", "zero_weight"]
NOTHING_CLIPPED = Clipped(torch.zeros(()), torch.ones(()))
_DENSE = Compress()


@dataclass(frozen=True, slots=True)
class Update:
    """What the optimizer takes, and what the methods will remember once it has."""

    grads: Grads
    clipped: Clipped
    slots: State


class GradientPath:
    """Walks one window's gradients down the path. Changes no state: a step that is skipped has left no trace."""

    def __init__(self, adapter: Adapter, plan: Plan, seed: int, clock: StageClock, norm: CachedNorm) -> None:
        self._adapter = adapter
        self._plan = plan
        self._seed = seed
        self._clock = clock
        self._norm = norm

    @torch.no_grad()
    def walk(self, grads: Grads, state: PipelineState) -> Update | SkipReason:
        """Give the update, or say why there is none. Collective: every rank must call it.

        Args:
            grads: this rank's gradients, overwritten in place.
            state: read; only counters of skips, and the loss scale after an overflow, are changed.

        Raises:
            NonFiniteGradientError: inf or NaN, where the plan's guard says so.
        """
        self._unscale_(grads, state)
        slots = state.slots
        if not self._adapter.reduces:
            grads, finite = self._agree(grads)
            if not finite:
                return self._skip(grads, state)
            slots = self._reduce_(grads, state)
        with self._clock("clip"):
            norm = self._norm(list(grads.values()))
            if not bool(torch.isfinite(norm)):
                return self._skip(grads, state)
            clipped = Clipped(norm, torch.ones_like(norm))
            if self._plan.clip is not None:
                clipped = self._plan.clip.clip_(grads, self._adapter.parameters, self._norm, slots)
                slots = merge(slots, clipped.state)
                clipped = Clipped(norm, clipped.clip_coef)
        if self._plan.loss_scale is not None:
            slots = merge(slots, self._plan.loss_scale.after_applied(state.slots))
        return Update(grads, clipped, slots)

    def _unscale_(self, grads: Grads, state: PipelineState) -> None:
        if self._plan.loss_scale is not None and grads:
            torch._foreach_mul_(list(grads.values()), 1.0 / self._plan.loss_scale.current(state.slots))

    def _agree(self, grads: Grads) -> tuple[Grads, bool]:
        """Vote; give every rank the same names, with zeros where this rank has no gradient."""
        with self._clock("guard"):
            parameters = self._adapter.parameters
            finite = bool(torch.isfinite(self._norm(list(grads.values()))))
            outcome = vote(grads, list(parameters), finite, self._adapter.collective)
            complete = {
                name: grads[name] if name in grads else zero_gradient(parameter)
                for name, parameter in parameters.items()
                if name in outcome.used
            }
        return complete, outcome.finite

    def _reduce_(self, grads: Grads, state: PipelineState) -> State:
        """Replace each rank's gradients by their sum over ranks; return what the methods will remember."""
        collective = self._adapter.collective
        compress = self._plan.compress or _DENSE
        if collective.world_size == 1 and compress.codec is None:
            return state.slots
        rng = StepRng(self._seed, state.step, collective.rank)
        context = ReduceContext(collective, rng, self._clock)
        reduced = reduce_gradients(grads, compress, state.slots, context)
        for name, grad in grads.items():
            grad.copy_(reduced.total[name])
        return reduced.state

    def _skip(self, grads: Grads, state: PipelineState) -> SkipReason:
        guard = self._plan.guard
        assert guard is not None
        if self._plan.loss_scale is not None:
            state.slots = merge(state.slots, self._plan.loss_scale.after_overflow(state.slots))
            return "nonfinite"
        skips = state.consecutive_skips + 1
        if guard.on_nonfinite == "skip" and skips < guard.max_consecutive_skips:
            state.consecutive_skips = skips
            return "nonfinite"
        error = nonfinite_error(grads, list(self._adapter.parameters), self._adapter.collective)
        if guard.on_nonfinite == "skip":
            raise NonFiniteGradientError(f"{skips} steps in a row are not finite (the limit). Now: {error}")
        raise error
