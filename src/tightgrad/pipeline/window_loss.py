"""A window's losses: each micro-batch's is scaled so that their gradients add up to the target."""

from collections.abc import Callable, Mapping

from torch import Tensor

from tightgrad.accumulate.losses import scaled_loss
from tightgrad.pipeline.meters.loss_meter import LossMeter
from tightgrad.pipeline.parts import Parts

Weights = Mapping[str, float]


class WindowLoss:
    """Multiplies losses by weight / N, and remembers them.

    Args:
        parts: what all steps share.
        find_totals: gives N, the weight of all micro-batches on all ranks, for each loss; may wait for other ranks.

    Attributes:
        loss_scale: an extra factor on each loss; None without loss scaling.
        totals: the N that what has been gathered is scaled by; None before the first backward.
        meter: takes the losses for the record.
    """

    def __init__(self, parts: Parts, find_totals: Callable[[], Weights]) -> None:
        accumulate = parts.plan.accumulate
        self.loss_scale = None if parts.scaling is None else parts.scaling.current(parts.state.slots)
        self.totals: Weights | None = None
        self.meter = LossMeter(accumulate.losses[0], is_mean=accumulate.loss_reduction == "mean", check=parts.check)
        self._parts, self._find_totals = parts, find_totals

    @property
    def factor(self) -> float:
        """Return what losses are multiplied by besides their weight over N."""
        return self._parts.adapter.divisor * (self.loss_scale or 1.0)

    def scaled(self, losses: Mapping[str, Tensor], weights: Weights) -> Tensor | None:
        """Return the sum of losses whose gradients, summed over micro-batches and ranks, are the target; None where
        nothing counts, and no other rank waits for this one's backward.
        """
        self._parts.premises.loss.look_for_scale(losses)
        adapter = self._parts.adapter
        if not (any(weights.values()) or adapter.every_rank_runs):
            return None
        self._parts.ownership.look_for_others(losses.values())
        totals = self.scale_by_n()
        self.meter.add(losses, weights, totals)
        counted = losses if adapter.every_rank_runs else {name: losses[name] for name in losses if weights[name] > 0}
        return scaled_loss(counted, weights, totals, self._parts.plan.accumulate, self.factor)

    def scale_by_n(self) -> Weights:
        """Scale by the N that is known now, also what has been accumulated: gradients are linear in 1 / N."""
        totals = self._find_totals()
        if self.totals is not None and self.totals != totals and any(totals.values()):
            ((name, before),) = self.totals.items()  # N becomes another with fetch="batch" only, which has one loss
            self._parts.adapter.scale_accumulated_(before / totals[name])
            self._parts.buffer.scale_(before / totals[name])
            self._parts.ownership.warn_of_others(f"from {before:g} to {totals[name]:g}", stacklevel=5)
        self.totals = totals
        return totals

    def over_ranks(self) -> Tensor:
        """Return the loss whose gradient is the window's. Collective: every rank must call it."""
        return self.meter.mean_over(self._parts.adapter.collective, self._parts.plan.accumulate.losses)
