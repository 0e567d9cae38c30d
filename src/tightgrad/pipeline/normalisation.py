"""Scales losses so that gradients add up to G = (1 / N) sum of grad L."""

from collections.abc import Callable, Mapping

from torch import Tensor

from tightgrad.accumulate import Accumulate
from tightgrad.accumulate.buffer import GradientBuffer
from tightgrad.core.protocols import Adapter

Weights = Mapping[str, float]


class Normalisation:
    """Knows by which N a window's gradients are scaled.

    Args:
        accumulate: how a loss is reduced.
        adapter: the wrapper, and what it divides by.
        buffer: holds gradients of low precision.

    Attributes:
        totals: N for each loss; None before the first backward.
    """

    def __init__(self, accumulate: Accumulate, adapter: Adapter, buffer: GradientBuffer) -> None:
        self._accumulate = accumulate
        self._adapter = adapter
        self._buffer = buffer
        self.totals: Weights | None = None

    def loss(
        self,
        losses: Mapping[str, Tensor],
        weights: Weights,
        find_totals: Callable[[], Weights],
        loss_scale: float | None,
    ) -> Tensor | None:
        """The sum of losses whose gradient, summed over micro-batches and ranks, is the target; None where nothing
        counts, and no other rank waits for this one's backward.

        Args:
            losses: of one micro-batch, by name.
            weights: of this micro-batch.
            find_totals: gives N, for this and what has been accumulated; may wait for the other ranks.
            loss_scale: what the loss is multiplied by on top; None without loss scaling.
        """
        if not (any(weights.values()) or self._adapter.every_rank_runs):
            return None
        totals = find_totals()
        self.follow(totals)
        scale = self._adapter.divisor * (loss_scale or 1.0)
        terms = [
            loss * (self._accumulate.loss_factor(weights[name], totals[name]) * scale)
            for name, loss in losses.items()
            if weights[name] > 0 or self._adapter.every_rank_runs
        ]
        return sum(terms[1:], start=terms[0])

    def follow(self, totals: Weights) -> None:
        """Scale by this N from now on, also what has been accumulated; before gradients are reduced or looked at."""
        if self.totals is not None and self.totals != totals and any(totals.values()):
            ((name, before),) = self.totals.items()
            factor = before / totals[name]
            self._adapter.scale_accumulated_(factor)
            self._buffer.scale_(factor)
        self.totals = totals
