"""The way of a gradient, in the order in which it goes.

backward   multiply the loss by weight / N -> loss.backward() -> accumulate
apply      sum over ranks (all finite?) -> before_clip -> guard -> clip -> optimizer -> what the methods remember
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tightgrad.accumulate import Window
from tightgrad.accumulate.losses import check_has_gradient
from tightgrad.adapters.plain import adding_zero
from tightgrad.clip.norm import CachedNorm
from tightgrad.core.collective import cause
from tightgrad.core.errors import UsageError
from tightgrad.core.types import State
from tightgrad.pipeline.closure import Again, Passes
from tightgrad.pipeline.delivery import Limited, Outcome, StepSkippedError, edited
from tightgrad.pipeline.left_out import LeftOut, tell_others
from tightgrad.pipeline.meters.compression_quality import CompressionQuality
from tightgrad.pipeline.meters.noise_meter import NoiseMeter
from tightgrad.pipeline.parts import Parts
from tightgrad.pipeline.window_loss import Weights, WindowLoss
from tightgrad.sync.compressed import merge
from tightgrad.sync.flush import held_residuals, residual_slots, without_residuals
from tightgrad.sync.protocol import Summed, WindowFacts


class Step:
    """Holds all that is gathered for one optimizer step; discarded once that is applied, skipped or dropped.

    Args:
        parts: what all steps share.
        window: whose micro-batches it takes.
        find_totals: gives N, the weight of all micro-batches on all ranks, for each loss; may wait for other ranks.

    Attributes:
        loss: multiplies losses by weight / N; `left_out` is what the loop has taken out of the window.
        retries: how often the window was run again with smaller micro-batches.
        total_weight: N of the first loss minus what was left out, once the window is complete.
    """

    def __init__(self, parts: Parts, window: Window[Any], find_totals: Callable[[], Weights]) -> None:
        self.window, noise = window, parts.plan.noise_scale
        self.loss = WindowLoss(parts, find_totals)
        self.noise = None if noise is None else NoiseMeter(noise, parts.adapter.collective)
        self.quality = CompressionQuality(parts.state.step, parts.plan.compress.reducer)
        self._parts, self.left_out, self.retries, self._has_told = parts, LeftOut(), 0, False
        self.total_weight: float | None = None

    def begin(self) -> None:
        """Check model and optimizer again, and clear all gradients; not for a window that a checkpoint reopens."""
        self._parts.premises.before_window()
        self._parts.restart()
        self._parts.adapter.begin_window()

    def begin_sum(self) -> None:
        """Prepare the sum over ranks, which may begin during backward. Collective: every rank must call it."""
        state, is_idle, scale = self._parts.state, self.window.counts_for_nothing, self.loss.loss_scale or 1.0
        self._parts.sync.begin(WindowFacts(state.slots, state.step, 1.0 / scale, is_idle, self.quality.observe))

    def backward(self, losses: dict[str, Tensor], weights: Weights) -> None:
        """Add the gradient of one micro-batch: scale its losses by N, run their backward, accumulate.

        Args:
            losses: of the micro-batch, by name; emptied, so that their tensors are freed as in a loop by hand.
            weights: of the micro-batch, for each loss; where all are 0, exactly 0 is added.
        """
        self._parts.premises.before_backward(losses, len(self.window))
        with self._parts.clock("backward"):
            loss = self.loss.scaled(losses, weights)
        losses.clear()
        self.add_gradient(loss, weights)

    def add_gradient(self, loss: Tensor | None, weights: Weights) -> None:
        """Add the gradient of a loss that is scaled already; None adds nothing."""
        with self._parts.clock("backward"):
            if loss is not None:
                check_has_gradient(loss)
                self._parts.adapter.before_backward()
                with self._around(weights):
                    loss.backward()
                self._parts.adapter.after_backward()
                if not self._parts.adapter.holds_back:
                    self._parts.premises.model.after_backward(stacklevel=5)
        if self._parts.buffer.absorbs and not self._parts.adapter.holds_back:
            with self._parts.clock("accumulate"):
                self._parts.buffer.absorb()
        self._parts.ownership.watch_grads()
        self._parts.premises.weights.remember()

    def leave_out(self, losses: dict[str, Tensor], weights: Weights) -> None:
        """Leave the current micro-batch out; where other ranks wait for its backward, run it and add exactly 0."""
        self.left_out.add(weights)
        if losses:
            self.backward(losses, dict.fromkeys(weights, 0.0))
        self._parts.ownership.watch_grads()

    def _around(self, weights: Weights) -> AbstractContextManager[None]:
        leaves = self._parts.adapter.leaves
        if not any(weights.values()):
            return adding_zero(leaves())
        return nullcontext() if self.noise is None else self.noise.watching(leaves(), next(iter(weights.values())))

    def complete(self) -> None:
        """Make sure that all micro-batches have had their backward, and scale by the true N. Collective."""
        try:
            if not self.window.is_complete:
                self._parts.ownership.check_grads()  # a backward that was not the pipeline's is named as such
            self.window.check_complete()
            self._parts.premises.look_again()
            self._parts.ownership.take_grads()
        except UsageError as error:
            self.tell(cause(error))
            raise
        kept = self.left_out.agree(self.loss.scale_by_n(), self._parts.plan, self._parts.adapter)
        self.total_weight = next(iter(kept.values()))

    def tell(self, why: str) -> None:
        """Tell ranks that wait at their step, once, why this one cannot go on. Collective: all call it, or step."""
        self._has_told = self._has_told or tell_others(self._parts, self.window, self.left_out, why)

    def apply(self, again: Again | None = None) -> Outcome:
        """Sum over ranks, clip, and step the optimizer, which may run the window `again` in its closure. Collective."""
        if not self.total_weight:
            return Outcome(skipped="zero_weight")
        return self._deliver(*self._summed(), again)

    def evaluate(self) -> tuple[Tensor, State]:
        """Complete the window and leave its gradients in place; return its loss over all ranks, and what the methods
        would remember. Raises `StepSkippedError` where the guard admits no step. Collective.
        """
        self.complete()
        slots = self._limit(*self._summed()).slots
        return self.loss.over_ranks(), slots

    def _summed(self) -> tuple[Summed, CachedNorm]:
        with self._parts.clock("accumulate"):
            self._has_told, grads = True, self._parts.buffer.grads()  # the sum itself says what fails
            self.left_out.rescale_(grads)
        with torch.no_grad():
            return self._parts.sync.sum(grads, norm := CachedNorm()), norm

    def flush(self) -> Outcome:
        """Step with all residuals instead of gradients, and clear them. Collective: every rank must call it."""
        state, slots = self._parts.state, residual_slots(self._parts.plan.slots)
        with torch.no_grad():
            sums = self._parts.sync.sum_residuals(held_residuals(state.slots, slots, self._parts.adapter))
        if not sums:
            return Outcome(skipped="no_residual")
        return self._deliver(Summed(sums, without_residuals(state.slots, slots)), CachedNorm())

    def _deliver(self, summed: Summed, norm: CachedNorm, again: Again | None = None) -> Outcome:
        """Bring sums over ranks to the optimizer."""
        parts = self._parts
        try:
            limited = self._limit(summed, norm)
            if again is not None:
                slots = Passes(parts, self.loss.over_ranks, limited.slots, again).step()
            else:
                slots = limited.slots
                with parts.clock("optimizer"):
                    parts.optimizer.step(limited.folds)
        except StepSkippedError as skipped:
            return skipped.outcome
        if parts.scaling is not None:
            slots = merge(slots, parts.scaling.after_applied(parts.state.slots))
        parts.state.applied(slots)
        parts.premises.weights.end_step()
        raised = parts.optimizer.step_schedulers(None if self.total_weight is None else self.loss.over_ranks)
        return replace(Outcome.of(summed, limited.clipped), raised=raised)

    def _limit(self, summed: Summed, norm: CachedNorm) -> Limited:
        """Let the guard decide, clip, and deliver the gradients; raise `StepSkippedError` where it admits no step."""
        parts, state, delivery = self._parts, self._parts.state, self._parts.delivery
        with torch.no_grad():
            if summed.finite:
                self.quality.add_factors(state.slots, summed.slots, parts.plan.slots, summed.grads)
                if parts.before_clip is not None:
                    edited(summed.grads, parts.before_clip, parts.adapter)
                    norm = CachedNorm()
                delivery.compare(summed.grads)  # after the edit, where a rank that has failed is waited for
                parts.premises.compare_again(self.window, state.step)
            admitted = delivery.admit(summed, norm)
            if admitted.skipped is not None:
                raise StepSkippedError(Outcome.of(summed, skipped=admitted.skipped))
            limited = delivery.clip(summed.grads, admitted.slots, norm)
            if self.noise is not None:
                learned = self.noise.learned(self.window, limited.clipped.total_norm, self.loss.factor, limited.slots)
                limited = replace(limited, slots=merge(limited.slots, learned))
        with parts.clock("optimizer"):
            parts.buffer.deliver(summed.grads)
        return limited
