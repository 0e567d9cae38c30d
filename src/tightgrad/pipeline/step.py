"""The way of a gradient, in the order in which it goes.

backward   scale the loss by N -> loss.backward() -> accumulate
apply      sum over ranks -> guard -> clip -> optimizer -> what the methods remember
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tightgrad.accumulate import Window
from tightgrad.accumulate.losses import check_has_gradient, scaled_loss
from tightgrad.adapters.plain import adding_zero
from tightgrad.clip.norm import CachedNorm
from tightgrad.core.types import State
from tightgrad.pipeline.closure import Again, Passes
from tightgrad.pipeline.delivery import Limited, Outcome, StepLeftOutError, edited
from tightgrad.pipeline.left_out import LeftOut
from tightgrad.pipeline.meters.compression_quality import CompressionQuality
from tightgrad.pipeline.meters.loss_meter import LossMeter
from tightgrad.pipeline.meters.noise_meter import NoiseMeter
from tightgrad.pipeline.parts import Parts
from tightgrad.sync.compressed import merge
from tightgrad.sync.flush import held_residuals, residual_slots, without_residuals
from tightgrad.sync.protocol import Summed, WindowFacts

Weights = Mapping[str, float]


class Step:
    """Holds all that is gathered for one optimizer step, and goes when that is applied, skipped or dropped.

    Args:
        parts: what all steps share.
        window: whose micro-batches it takes.
        find_totals: gives N, the weight of all micro-batches on all ranks, for each loss; may wait for other ranks.

    Attributes:
        loss_scale: what losses are multiplied by on top; None without loss scaling.
        totals: the N that what has been gathered is scaled by; None before the first backward.
        retries: how often the window was run again with smaller micro-batches.
        left_out: what the loop has taken out of the window.
        total_weight: N of the first loss without it, once the window is complete.
    """

    def __init__(self, parts: Parts, window: Window[Any], find_totals: Callable[[], Weights]) -> None:
        accumulate, settings = parts.plan.accumulate, parts.plan.noise_scale
        self.window = window
        self.loss_scale = None if parts.scaling is None else parts.scaling.current(parts.state.slots)
        self.losses = LossMeter(accumulate.losses[0], is_mean=accumulate.loss_reduction == "mean", check=parts.check)
        self.noise = None if settings is None else NoiseMeter(settings, parts.adapter.collective)
        self.quality = CompressionQuality(parts.state.step, parts.plan.compress.reducer)
        self.retries = 0
        self._parts = parts
        self._find_totals = find_totals
        self.totals: Weights | None = None
        self.left_out = LeftOut()
        self.total_weight: float | None = None
        self._scaled_losses: list[Tensor] = []

    def begin(self) -> None:
        """Begin a new window. Collective: every rank must call it."""
        self._parts.premises.model.look()
        self._parts.premises.look_again()
        self._parts.restart()
        self._parts.adapter.begin_window()

    def begin_sum(self) -> None:
        """Prepare the sum over ranks, which may begin during backward. Collective: every rank must call it."""
        state, is_idle = self._parts.state, self.window.counts_for_nothing
        factor = 1.0 / (self.loss_scale or 1.0)
        self._parts.sync.begin(WindowFacts(state.slots, state.step, factor, is_idle, self.quality.observe))

    def backward(self, losses: dict[str, Tensor], weights: Weights) -> None:
        """Add the gradient of one micro-batch: scale its losses by N, run their backward, accumulate.

        Args:
            losses: of the micro-batch, by name; taken out, as a loop by hand does not hold them during backward either.
            weights: of the micro-batch, for each loss; where all are 0, exactly 0 is added.
        """
        self._parts.premises.weights.look(stacklevel=4)
        with self._parts.clock("backward"):
            loss = self.scaled(losses, weights)
            if loss is not None and any(weights.values()):
                self._scaled_losses.append(loss.detach())
        losses.clear()
        self.add_gradient(loss, weights)

    def add_gradient(self, loss: Tensor | None, weights: Weights) -> None:
        """Add the gradient of a loss that is scaled already; None adds nothing."""
        with self._parts.clock("backward"):
            if loss is not None:
                check_has_gradient(loss)
                with self._around(weights):
                    loss.backward()
                if not self._parts.adapter.holds_back:
                    self._parts.premises.model.after_backward(stacklevel=5)
        if self._parts.buffer.absorbs and not self._parts.adapter.holds_back:
            with self._parts.clock("accumulate"):
                self._parts.buffer.absorb()
        self._parts.ownership.leave_grads()
        self._parts.premises.weights.remember()

    def skip(self, losses: dict[str, Tensor], weights: Weights) -> None:
        """Leave the current micro-batch out; where other ranks wait for its backward, run it and add exactly 0."""
        self.left_out.add(weights)
        if losses:
            self.backward(losses, dict.fromkeys(weights, 0.0))
        self._parts.ownership.leave_grads()

    def scaled(self, losses: Mapping[str, Tensor], weights: Weights) -> Tensor | None:
        """Return the sum of losses whose gradients, summed over micro-batches and ranks, are the target; None where
        nothing counts, and no other rank waits for this one's backward.
        """
        self.losses.add(losses, weights)
        adapter = self._parts.adapter
        if not (any(weights.values()) or adapter.every_rank_runs):
            return None
        totals = self._scale_by(self._find_totals())
        counted = losses if adapter.every_rank_runs else {name: losses[name] for name in losses if weights[name] > 0}
        return scaled_loss(counted, weights, totals, self._parts.plan.accumulate, self._factor)

    @property
    def _factor(self) -> float:
        """What losses are multiplied by on top of their weight over N."""
        return self._parts.adapter.divisor * (self.loss_scale or 1.0)

    def _scale_by(self, totals: Weights) -> Weights:
        """Scale by this N from now on, also what has been accumulated: gradients are linear in 1 / N."""
        if self.totals is not None and self.totals != totals and any(totals.values()):
            ((name, before),) = self.totals.items()
            self._parts.adapter.scale_accumulated_(before / totals[name])
            self._parts.buffer.scale_(before / totals[name])
        self.totals = totals
        return totals

    def _around(self, weights: Weights) -> AbstractContextManager[None]:
        leaves = self._parts.adapter.leaves
        if not any(weights.values()):
            return adding_zero(leaves())
        return nullcontext() if self.noise is None else self.noise.watching(leaves(), next(iter(weights.values())))

    def complete(self) -> None:
        """Make sure that all micro-batches have had their backward, and scale by the true N. Collective."""
        self.window.check_complete()
        self._parts.ownership.take_grads(self.fail)
        self._parts.premises.look_again()
        totals = self._scale_by(self._find_totals())
        kept = self.left_out.agree(totals, self._parts.plan, self._parts.adapter)
        self.total_weight = next(iter(kept.values()))

    def fail(self) -> None:
        """Take part in what other ranks wait for, to tell them that this one has failed. Collective."""
        self.left_out.agreed_weight(self._parts.plan, self._parts.adapter)
        if not self.window.counts_for_nothing:
            self._parts.sync.fail()

    def apply(self, again: Again | None = None) -> Outcome:
        """Sum over ranks, clip, and step the optimizer. Collective: every rank must call it.

        Args:
            again: runs the window anew, for an optimizer that takes a closure; None for others.
        """
        if not self.total_weight:
            return Outcome(skipped="zero_weight")
        return self._deliver(*self._summed(), again)

    def evaluate(self) -> tuple[Tensor, State]:
        """Sum over ranks, clip, and leave the gradients in place; return the window's loss over all ranks, and what the
        methods would remember. Collective: every rank must call it.

        Raises:
            StepLeftOutError: the guard admits no step.
        """
        limited = self._limit(*self._summed())
        return self._loss_of_all(), limited.slots

    def _loss_of_all(self) -> Tensor:
        """The loss whose gradient is that of the window. Collective."""
        ranks = self._parts.adapter.collective
        total = torch.zeros((), dtype=torch.float64, device=ranks.control_device)
        for loss in self._scaled_losses:
            total += loss.reshape(()).to(total.device)
        return ranks.all_reduce_(total, "sum") / self._factor

    def _summed(self) -> tuple[Summed, CachedNorm]:
        with self._parts.clock("accumulate"):
            grads = self._parts.buffer.grads()
            self.left_out.rescale_(grads)
        norm = CachedNorm()
        with torch.no_grad():
            return self._parts.sync.sum(grads, norm), norm

    def flush(self) -> Outcome:
        """Step with all residuals instead of gradients, and clear them. Collective: every rank must call it."""
        state, slots = self._parts.state, residual_slots(self._parts.plan.slots)
        with torch.no_grad():
            sums = self._parts.sync.sum_residuals(held_residuals(state.slots, slots, self._parts.adapter))
        if not sums:
            return Outcome(skipped="no_residual")
        return self._deliver(Summed(sums, without_residuals(state.slots, slots)), CachedNorm())

    def _deliver(self, summed: Summed, norm: CachedNorm, again: Again | None = None) -> Outcome:
        """From sums over ranks to the optimizer."""
        parts = self._parts
        try:
            limited = self._limit(summed, norm)
            if again is not None:
                slots = Passes(parts, self._loss_of_all, limited.slots, again).step()
            else:
                slots = limited.slots
                with parts.clock("optimizer"):
                    parts.optimizer.step(limited.folds)
        except StepLeftOutError as left_out:
            return left_out.outcome
        if parts.scaling is not None:
            slots = merge(slots, parts.scaling.after_applied(parts.state.slots))
        parts.state.applied(slots)
        parts.optimizer.step_schedulers()
        return Outcome.of(summed, limited.clipped)

    def _limit(self, summed: Summed, norm: CachedNorm) -> Limited:
        """Let the guard decide, clip, and put the gradients where the optimizer looks for them.

        Raises:
            StepLeftOutError: the guard admits no step.
        """
        parts, state, delivery = self._parts, self._parts.state, self._parts.delivery
        with torch.no_grad():
            if summed.finite:
                delivery.compare(summed.grads)
                self.quality.add_factors(state.slots, summed.slots, parts.plan.slots, summed.grads)
                if parts.before_clip is not None:
                    edited(summed.grads, parts.before_clip)
                    norm = CachedNorm()
            admitted = delivery.admit(summed, norm)
            if admitted.skipped is not None:
                raise StepLeftOutError(Outcome.of(summed, skipped=admitted.skipped))
            limited = delivery.clip(summed.grads, admitted.slots, norm)
            if self.noise is not None:
                learned = self.noise.learned(self.window, limited.clipped.total_norm, self._factor, limited.slots)
                limited = replace(limited, slots=merge(limited.slots, learned))
        with parts.clock("optimizer"):
            parts.buffer.deliver(summed.grads)
        return limited
