"""What becomes of sums over ranks, in a step of the pipeline as in an outer step of local updates."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tightgrad.adapters.plain import Adapter
from tightgrad.checkpoint.state import PipelineState
from tightgrad.clip.fold import Fold, multiplied
from tightgrad.core.clock import StageClock
from tightgrad.core.collective import cause
from tightgrad.core.errors import GradientSpikeError, NonFiniteGradientError, TightGradError, UsageError
from tightgrad.core.notices import warn
from tightgrad.core.protocols import GradNorm
from tightgrad.core.types import Clipped, Grads, State
from tightgrad.pipeline.meters.worst import worst
from tightgrad.plan.guard import MOST_NAMED, agreed_on_any, nonfinite_counts, nonfinite_error
from tightgrad.plan.loss_scaling import LossScaling
from tightgrad.plan.plan import Resolved
from tightgrad.sync.compressed import merge, without_nonfinite
from tightgrad.sync.drift import check_no_drift
from tightgrad.sync.protocol import Summed
from tightgrad.sync.same_edit import check_same_edit

SkipReason = Literal["nonfinite", "spike", "zero_weight", "no_residual"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Holds what came of a step.

    Args:
        clipped: norm and factor of the gradient that was applied; None under an empty plan that does not measure.
        skipped: why there was no step; None if there was.
        relative_error: what compression left out, over all ranks; None where no fallback asks for it.
        fell_back: whether something was sent again, densely.
        raised: what a scheduler has raised after the step, which was applied.
    """

    clipped: Clipped | None = None
    skipped: SkipReason | None = None
    relative_error: float | None = None
    fell_back: bool = False
    raised: Exception | None = None

    @classmethod
    def of(cls, summed: Summed, clipped: Clipped | None = None, skipped: SkipReason | None = None) -> "Outcome":
        """Return what came of a step for which ranks have summed."""
        return cls(clipped, skipped, summed.relative_error, summed.fell_back)


class StepSkippedError(Exception):
    """Carries what came of a step that the guard does not admit out of a step that has begun."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Admitted:
    """Holds what the guard has decided.

    Args:
        slots: what the methods may remember, if the step is applied.
        skipped: why the step is left out; None if it is not.
    """

    slots: State
    skipped: SkipReason | None = None


@dataclass(frozen=True, slots=True)
class Limited:
    """Holds how gradients were limited.

    Args:
        clipped: norm before, and factor.
        slots: what the methods will remember, if the step is applied.
        folds: for each optimizer, the factor that it still has to multiply by, or None; empty if all gradients are
            final.
    """

    clipped: Clipped
    slots: State
    folds: Sequence[Tensor | None] = ()


def edited(grads: Grads, edit: Callable[[Grads], object], adapter: Adapter) -> None:
    """Let `edit` change gradients in place, alike on all ranks. Collective: every rank must call it.

    Raises:
        Exception: what `edit` has raised here.
        UsageError: it put others in their place, or returned others, or has raised on another rank.
        RankMismatchError: on every rank, if it has made other gradients on one than on the others.
    """
    given, error = dict(grads), None
    try:
        returned = edit(grads)
        others = [*grads.values(), *_gradients(returned, given)]
        if grads.keys() != given.keys() or not set(map(id, others)) <= set(map(id, given.values())):
            raise UsageError(
                "before_clip put other gradients in the place of those that it was given, or returned new ones, which "
                "are not used; change them in place, such as grads[name].mul_(0.5) or grads[name].copy_(new)."
            )
    except Exception as raised:
        error = raised
    with suppress(*(() if error is None else (TightGradError,))):
        check_same_edit(given, adapter.parameters, cause(error), adapter.collective)
    try:
        if error is not None:
            raise error
    finally:
        del error  # else its traceback and this frame hold each other, and the gradients


def _gradients(returned: object, given: Grads) -> Iterable[Tensor]:
    """What an edit has returned, if it is meant to be gradients: a tensor of the same shape for some of the names."""
    if not isinstance(returned, Mapping) or not returned.keys() <= given.keys():
        return ()
    shapes = {name: getattr(value, "shape", None) for name, value in returned.items()}
    return returned.values() if all(shape == given[name].shape for name, shape in shapes.items()) else ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """Lets the guard decide on sums over ranks, and the plan's clipper limit them.

    Args:
        adapter: of the model.
        plan: that runs.
        state: read; only counters of skips, and the loss scale after an overflow, are changed.
        clock: takes the seconds of the stages.
        fold: hands a clip factor on to the optimizers, or multiplies by it.
        scaling: learns from overflows; None without a loss scale.
    """

    adapter: Adapter
    plan: Resolved
    state: PipelineState
    clock: StageClock
    fold: Fold = multiplied
    scaling: LossScaling | None = None

    def admit(self, summed: Summed, norm: GradNorm) -> Admitted:
        """Let the guard decide. Collective: every rank must call it.

        Args:
            summed: the gradients, whose entries that are not finite may be set to 0.
            norm: measures them.

        Raises:
            UsageError: on every rank, if no parameter has a gradient on any.
            NonFiniteGradientError: inf or NaN, where the plan's guard says so.
            GradientSpikeError: one spike after the other, up to the guard's limit.
        """
        slots = summed.slots
        if summed.finite and not summed.grads:
            raise UsageError(
                "no parameter of this pipeline has a gradient after the backwards of this window, so there is nothing "
                "to step with. The losses came from something else: a copy of the model, another model, or "
                "torch.tensor(loss). Nothing was changed. Compute the loss with the model that attach() was given."
            )
        if summed.finite:
            with self.clock("clip"):
                if self.plan.guard.on_nonfinite == "zero" and not math.isfinite(norm(list(summed.grads.values()))):
                    # What was remembered of entries that are set to 0 was not sent.
                    slots = without_nonfinite(slots, self.state.slots, summed.grads, self.plan.slots)
                if self.plan.guard.admits_(summed.grads, norm, self.plan.largest_norm):
                    return self._unless_spike(summed.grads, slots, norm)
        self._skip(summed)
        return Admitted(summed.slots, "nonfinite")

    def _unless_spike(self, grads: Grads, slots: State, norm: GradNorm) -> Admitted:
        guard, collective = self.plan.guard, self.adapter.collective
        if not guard.looks_for_spikes:
            return Admitted(slots)
        total = norm(list(grads.values()))
        words = guard.spike(total, self.state.slots)
        if not agreed_on_any(words is not None, collective):
            return Admitted(merge(slots, guard.remembered(total, self.state.slots)))
        largest = ", ".join(f"{name!r} ({size:.4g})" for name, size in worst(grads, MOST_NAMED))
        text = (
            f"the gradient's norm, {float(total):.6g}, is above {words or 'the bound of another rank'}. Largest are "
            f"those of {largest}"
        )
        skips = self._counted_skip()
        if skips >= guard.max_consecutive_skips:
            raise GradientSpikeError(
                f"{skips} steps in a row were left out (the limit). Now: {text}. Lower the learning rate, clip, look "
                "at the data of these steps, or raise the bound."
            )
        if collective.rank == 0:
            warn(f"step {self.state.step} was left out: {text}.", stacklevel=5)
        return Admitted(slots, "spike")

    def _counted_skip(self) -> int:
        """Count one more, but for the one that raises."""
        skips = self.state.consecutive_skips + 1
        if skips < self.plan.guard.max_consecutive_skips:
            self.state.consecutive_skips = skips
        return skips

    def compare(self, grads: Grads) -> None:
        """Look now and then whether ranks have drifted apart. Collective: every rank must call it.

        Raises:
            RankMismatchError: on every rank, if they have.
        """
        every, step, collective = self.plan.guard.compare_every, self.state.step, self.adapter.collective
        if every and step % every == 0 and collective.world_size > 1:
            with self.clock("guard"):
                check_no_drift(grads, self.adapter.parameters, step, collective)

    def clip(self, grads: Grads, slots: State, norm: GradNorm) -> Limited:
        """Limit gradients as the plan says. Collective where they are sharded: every rank must call it."""
        with self.clock("clip"):
            total = norm(list(grads.values()))
            if self.plan.clip is None:
                return Limited(Clipped(total, torch.ones_like(total)), slots)
            folds: Sequence[Tensor | None] = ()
            clipped = self.plan.clip.factor(grads, norm, slots)
            if clipped is not None:
                folds = self.fold(grads, clipped.clip_coef)
            else:
                clipped = self.plan.clip.clip_(grads, self.adapter.parameters, norm, slots)
            limited = Clipped(total, clipped.clip_coef, groups=clipped.groups)
            return Limited(limited, merge(slots, clipped.state), folds)

    def _skip(self, summed: Summed) -> None:
        """Count a step that is left out, or raise."""
        state, skips = self.state, 0
        if self.scaling is not None:
            state.slots = merge(state.slots, self.scaling.after_overflow(state.slots))
            return
        if self.plan.guard.on_nonfinite == "skip":
            skips = self._counted_skip()
            if skips < self.plan.guard.max_consecutive_skips:
                return
        counts = summed.nonfinite or nonfinite_counts(summed.grads)
        error = nonfinite_error(counts, list(self.adapter.parameters), self.adapter.collective)
        if skips:
            raise NonFiniteGradientError(f"{skips} steps in a row are not finite (the limit). Now: {error}")
        raise error
