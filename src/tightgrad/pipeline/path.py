"""From accumulated gradients to those that the optimizer takes: guard, unscale, reduce, clip."""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tightgrad.accumulate.buffer import zero_gradient
from tightgrad.adapters.fsdp2 import FSDP2Adapter
from tightgrad.checkpoint.state import PipelineState
from tightgrad.clip.cached_norm import CachedNorm
from tightgrad.clip.fold import Fold, multiplied
from tightgrad.clip.one_factor import OneFactorClipper, clip_coefficient
from tightgrad.clip.placed import scale_, zero_nonfinite_
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import NonFiniteGradientError
from tightgrad.core.protocols import Adapter, Observe, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Clipped, Grads, State, slots_with
from tightgrad.pipeline.compression_quality import MEASURED_STEPS, Fidelity
from tightgrad.plan.guard import nonfinite_counts, nonfinite_error, vote, vote_failure
from tightgrad.plan.loss_scaling import LossScaling
from tightgrad.plan.plan import Compress, Plan
from tightgrad.reducers import Dense
from tightgrad.sync.compressed import merge, owns_storage, reduce_gradients, taken_back
from tightgrad.sync.ddp_buckets import OverlappedReduction
from tightgrad.sync.delivered import check_delivered
from tightgrad.sync.drift import check_no_drift
from tightgrad.sync.fallback import ErrorMeter, sending, sending_densely
from tightgrad.sync.flush import residual_slots, summed_residuals, without_residuals
from tightgrad.sync.fsdp2_shards import ShardedReduction
from tightgrad.sync.node_reduction import NodeReduction
from tightgrad.sync.outcome import InBackward

SkipReason = Literal["nonfinite", "zero_weight", "no_residual"]
NOTHING_CLIPPED = Clipped(torch.zeros(()), torch.ones(()))
_DENSE = Compress()
_IN_BACKWARD: dict[str, Callable[[Any, Plan, int, StageClock], InBackward]] = {
    "buckets": OverlappedReduction,
    "units": ShardedReduction,
    "nodes": NodeReduction,
}


@dataclass(frozen=True, slots=True)
class Update:
    """What the optimizer takes, and what the methods will remember once it has.

    Args:
        grads: the gradients.
        clipped: norm and factor.
        slots: the methods' state.
        fold: the factor that the optimizer still has to multiply by; None if the gradients are final.
    """

    grads: Grads
    clipped: Clipped
    slots: State
    fold: Tensor | None = None


class GradientPath:
    """Walks one window's gradients down the path. Changes no state: a step that is skipped has left no trace.

    Attributes:
        relative_error: of the last walk, over all ranks; None where no fallback asks for it.
        fell_back: whether the last walk sent gradients again, densely.
        before_clip: called with the gradients summed over ranks, which it may change, before their norm is taken.
    """

    def __init__(
        self,
        adapter: Adapter,
        plan: Plan,
        seed: int,
        clock: StageClock,
        norm: CachedNorm,
        *,
        fold: Fold = multiplied,
        scaling: LossScaling | None = None,
    ) -> None:
        self._adapter = adapter
        self._plan = plan
        self._seed = seed
        self._clock = clock
        self._norm = norm
        self._fold = fold
        self._scaling = scaling
        self._loss_scale: float | None = None
        self.before_clip: Callable[[Grads], None] | None = None
        self.fidelity = Fidelity()
        self._in_backward = _in_backward(adapter, plan, seed, clock)
        self.relative_error: float | None = None
        self.fell_back = False

    def open(self, state: PipelineState, loss_scale: float | None, *, idle: bool) -> None:
        """Begin a window whose gradients will have to be divided by `loss_scale`; `idle` if nothing in it counts."""
        self._loss_scale = loss_scale
        self.relative_error, self.fell_back = None, False
        self.fidelity.clear()
        if self._in_backward is not None:
            observe = self._observed_at(state.step)
            self._in_backward.open(state.slots, state.step, 1.0 / (loss_scale or 1.0), idle=idle, observe=observe)

    def drop(self) -> None:
        """Forget what is under way."""
        if self._in_backward is not None:
            self._in_backward.drop()

    def abandon(self) -> None:
        """Drop a window in its middle. Collective: every rank must call it."""
        if self._in_backward is not None:
            self._in_backward.abandon()

    @torch.no_grad()
    def walk(self, grads: Grads, state: PipelineState) -> Update | SkipReason:
        """Give the update, or say why there is none. Collective: every rank must call it.

        Args:
            grads: this rank's gradients, overwritten in place, tensors and dictionary.
            state: read; only counters of skips, and the loss scale after an overflow, are changed.

        Raises:
            NonFiniteGradientError: inf or NaN, where the plan's guard says so.
            PayloadError: on every rank, when any could not decode what it received.
            RankMismatchError: on every rank, when they received different gradients.
        """
        if self._in_backward is not None:
            reduced = self._take_over(grads, state, self._in_backward)
        elif self._adapter.reduces:
            if isinstance(self._adapter, FSDP2Adapter):
                grads = self._used(grads, self._adapter)
            else:
                self._unscale_(grads)
            reduced = grads, state.slots
        else:
            reduced = self._agree_and_reduce_(grads, state)
        if isinstance(reduced, str):
            return reduced
        self._compare(reduced[0], state.step)
        return self._finished(*reduced, state)

    def fail(self) -> None:
        """Take part in what `walk` does, only to tell the other ranks that this one has failed. Collective: every rank
        must call it, or `walk`. Where the wrapper has reduced, the others do not wait, and learn of it later.
        """
        if self._in_backward is not None:
            self._in_backward.abandon()
        elif not self._adapter.reduces:
            vote_failure(list(self._adapter.parameters), self._adapter.collective)

    def _compare(self, grads: Grads, step: int) -> None:
        """Look now and then whether ranks have drifted apart. Collective."""
        assert self._plan.guard is not None
        every = self._plan.guard.compare_every
        if every and step % every == 0 and self._adapter.collective.world_size > 1:
            with self._clock("guard"):
                check_no_drift(grads, self._adapter.parameters, step, self._adapter.collective)

    @torch.no_grad()
    def flush(self, state: PipelineState) -> Update | SkipReason:
        """Deliver all residuals densely. Collective: every rank must call it.

        Raises:
            UsageError: the plan keeps none.
            NonFiniteGradientError: their sum is inf or NaN, where the plan's guard says so.
        """
        self.relative_error, self.fell_back = None, False
        slots = residual_slots(self._plan.slots)
        collective = self._adapter.collective
        context = ReduceContext(collective, StepRng(self._seed, state.step, collective.rank), self._clock)
        grads = summed_residuals(state.slots, slots, self._adapter, context)
        if not grads:
            return "no_residual"
        return self._finished(grads, without_residuals(state.slots, slots), state)

    def _take_over(
        self, grads: Grads, state: PipelineState, in_backward: InBackward
    ) -> "tuple[Grads, State] | SkipReason":
        """What was reduced while backward went on."""
        with self._clock("wait"):
            outcome = in_backward.finish()
        if not outcome.finite:
            return self._skip(grads, state, outcome.nonfinite)
        self.fell_back = outcome.fell_back
        if outcome.totals is None:
            # Not `parameter.grad`: low-precision gradients have been moved on into float32 sums.
            delivered = {name: grad for name, grad in grads.items() if name not in outcome.unused}
            self.relative_error = outcome.meter.relative_error if outcome.meter else None
        elif outcome.meter is not None and self._is_too_far_off(outcome.meter):
            return self._agree_and_reduce_(grads, state, densely=True)
        else:
            delivered = {name: self._in_layout(name, total) for name, total in outcome.totals.items()}
        self._check_delivered(delivered, outcome.failures)
        return delivered, outcome.slots

    def _in_layout(self, name: str, total: Tensor) -> Tensor:
        """In the memory order of its parameter, as gradients are."""
        parameter = self._adapter.parameters[name]
        return total if parameter.is_contiguous() else torch.empty_like(parameter, dtype=total.dtype).copy_(total)

    def _agree_and_reduce_(
        self, grads: Grads, state: PipelineState, *, densely: bool = False
    ) -> "tuple[Grads, State] | SkipReason":
        """Guard, local clip, reduction, one after the other."""
        self._unscale_(grads)
        grads, finite = self._agree(grads)
        if not finite:
            return self._skip(grads, state)
        self._clip_locally_(grads)
        return grads, self._reduce_(grads, state, densely=densely)

    def _used(self, grads: Grads, adapter: FSDP2Adapter) -> Grads:
        """The unscaled gradients of those parameters that any rank used. Collective.

        A rank that is not sure of all parameters says so by its part of the norm, which is NaN then on every rank, and
        only then is each parameter asked for. Where nobody would look at the norm, they are asked for at once.
        """
        assert self._plan.guard is not None
        known = adapter.known_used(grads)
        self._unscale_(grads)
        if adapter.norm_reaches_all and self._plan.guard.on_nonfinite != "propagate":
            with self._clock("clip"):
                if math.isfinite(self._norm(list(grads.values()), is_void=not grads.keys() <= known)):
                    return grads
            self._norm.clear()
        return self._complete(grads, adapter.used_anywhere(known))

    def _finished(self, grads: Grads, slots: State, state: PipelineState) -> Update | SkipReason:
        """Clip what was delivered."""
        if self._observed_at(state.step) is not None:
            for slot in slots_with("factors", self._plan.slots):
                self.fidelity.saw_factors(state.slots.get(slot.name, {}), slots.get(slot.name, {}), grads)
        if self.before_clip is not None:
            self.before_clip(grads)
            self._norm.clear()
        with self._clock("clip"):
            if slots is not state.slots:
                slots = self._without_nonfinite(slots, state.slots, grads)
            if not self._is_usable_(grads):
                return self._skip(grads, state)
            norm = self._norm(list(grads.values()))
            clipped = Clipped(norm, torch.ones_like(norm))
            fold = None
            if self._plan.clip is not None:
                if isinstance(self._plan.clip, OneFactorClipper):
                    clipped = self._plan.clip.factor(grads, self._norm, slots)
                    fold = self._fold(grads, clipped.clip_coef)
                else:
                    clipped = self._plan.clip.clip_(grads, self._adapter.parameters, self._norm, slots)
                slots = merge(slots, clipped.state)
                clipped = Clipped(norm, clipped.clip_coef)
        return Update(grads, clipped, slots, fold)

    def _is_usable_(self, grads: Grads) -> bool:
        """Whether the guard lets these gradients pass, after it may have changed them."""
        assert self._plan.guard is not None
        policy = self._plan.guard.on_nonfinite
        if policy == "propagate" or float(self._norm(list(grads.values()))) <= _largest_norm(self._plan):
            return True
        if policy == "zero":
            zero_nonfinite_(grads.values())
        return policy == "zero"

    def _without_nonfinite(self, slots: State, before: State, grads: Grads) -> State:
        """What was remembered of entries whose sum over ranks is inf or NaN is taken back, if they are set to 0."""
        assert self._plan.guard is not None
        if self._plan.guard.on_nonfinite != "zero" or math.isfinite(self._norm(list(grads.values()))):
            return slots
        return taken_back(slots, before, grads, self._plan.slots)

    def _clip_locally_(self, grads: Grads) -> None:
        """Limit what this rank adds to the sum over ranks to local_clip / sqrt(ranks)."""
        if self._plan.local_clip is None:
            return
        with self._clock("local_clip"):
            bound = self._plan.local_clip / math.sqrt(self._adapter.collective.world_size)
            scale_(grads.values(), clip_coefficient(self._norm(list(grads.values())), bound))

    def _unscale_(self, grads: Grads) -> None:
        if self._loss_scale is not None and grads:
            torch._foreach_mul_(list(grads.values()), 1.0 / self._loss_scale)

    def _agree(self, grads: Grads) -> tuple[Grads, bool]:
        """Vote; give every rank the same names, with zeros where this rank has no gradient."""
        with self._clock("guard"):
            finite = self._is_usable_(grads)
            outcome = vote(grads, list(self._adapter.parameters), finite, self._adapter.collective)
            complete = self._complete(grads, outcome.used)
        return complete, outcome.finite

    def _complete(self, grads: Grads, used: Set[str]) -> Grads:
        """Gradients of the parameters that any rank used, zeros where this rank did not, and of no others."""
        if used == grads.keys():
            return grads
        return {
            name: grads[name] if name in grads else zero_gradient(parameter)
            for name, parameter in self._adapter.parameters.items()
            if name in used
        }

    def _reduce_(self, grads: Grads, state: PipelineState, *, densely: bool = False) -> State:
        """Replace each rank's gradients by their sum over ranks; return what the methods will remember."""
        collective = self._adapter.collective
        compress = self._plan.compress or _DENSE
        if collective.world_size == 1 and isinstance(compress.reducer, Dense):
            return state.slots
        rng = StepRng(self._seed, state.step, collective.rank)
        observe = None if densely else self._observed_at(state.step)
        context = ReduceContext(collective, rng, self._clock, observe=observe)
        assert compress.reducer is not None
        meter = ErrorMeter() if compress.fallback is not None and not densely else None
        send = sending_densely(context) if densely else sending(compress.reducer, compress.codec, context)
        reduced = reduce_gradients(
            grads,
            compress,
            state.slots,
            context,
            meter.around(send) if meter is not None else send,
            owned=owns_storage(grads) if meter is None else frozenset(),  # a fallback sends them again
        )
        if meter is not None and self._is_too_far_off(meter):
            return self._reduce_(grads, state, densely=True)
        for name, grad in grads.items():
            total = reduced.total[name]
            is_alike = total.dtype is grad.dtype and total.stride() == grad.stride()
            grads[name] = total if is_alike else torch.empty_like(grad).copy_(total)
        self._check_delivered(grads, context.failures)
        return reduced.state

    def _observed_at(self, step: int) -> Observe | None:
        """What compression is shown to at this step; None at most steps, and without compression."""
        compresses = self._plan.compress is not None and not isinstance(self._plan.compress.reducer, Dense)
        return self.fidelity.saw if compresses and step % MEASURED_STEPS == 0 else None

    def _is_too_far_off(self, meter: ErrorMeter) -> bool:
        """Whether the step's relative error over all ranks asks for the fallback. Collective."""
        compress = self._plan.compress or _DENSE
        assert compress.max_relative_error is not None
        self.relative_error = meter.agreed(self._adapter.collective).relative_error
        self.fell_back = self.relative_error > compress.max_relative_error
        return self.fell_back

    def _check_delivered(self, grads: Grads, failures: Sequence[str]) -> None:
        compress = self._plan.compress or _DENSE
        if self._adapter.collective.world_size > 1 and not isinstance(compress.reducer, Dense):
            with self._clock("guard"):
                check_delivered(failures, self._norm(list(grads.values())), self._adapter.collective)

    def _skip(self, grads: Grads, state: PipelineState, nonfinite: Mapping[str, int] | None = None) -> SkipReason:
        guard = self._plan.guard
        assert guard is not None
        if self._scaling is not None:
            state.slots = merge(state.slots, self._scaling.after_overflow(state.slots))
            return "nonfinite"
        skips = state.consecutive_skips + 1
        if guard.on_nonfinite == "skip" and skips < guard.max_consecutive_skips:
            state.consecutive_skips = skips
            return "nonfinite"
        counts = nonfinite_counts(grads) if nonfinite is None else nonfinite
        error = nonfinite_error(counts, list(self._adapter.parameters), self._adapter.collective)
        if guard.on_nonfinite == "skip":
            raise NonFiniteGradientError(f"{skips} steps in a row are not finite (the limit). Now: {error}")
        raise error


def _largest_norm(plan: Plan) -> float:
    """What the guard lets pass: codecs add and multiply in float32."""
    compress = plan.compress or _DENSE
    is_dense = compress.codec is None and isinstance(compress.reducer, Dense)
    return torch.finfo(torch.float64 if is_dense else torch.float32).max


def _in_backward(adapter: Adapter, plan: Plan, seed: int, clock: StageClock) -> InBackward | None:
    """What reduces while backward goes on, where the adapter lets it."""
    hand_over = adapter.hand_over
    return None if hand_over is None else _IN_BACKWARD[hand_over.kind](hand_over, plan, seed, clock)
