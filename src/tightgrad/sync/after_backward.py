"""The sum over ranks after a window's last backward: guard, local clip, feedback, codec, network, in this order."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from tightgrad.adapters.plain import Adapter
from tightgrad.clip.dtensor import scale_
from tightgrad.clip.one_factor import clip_coefficient
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import GradNorm, ReduceContext
from tightgrad.core.types import Grads, Reduced
from tightgrad.plan.guard import vote, vote_failure
from tightgrad.plan.plan import Resolved
from tightgrad.sync.by_wrapper import unscale_
from tightgrad.sync.compressed import completed, in_layout, owns_storage, reduce_gradients
from tightgrad.sync.fallback import ErrorMeter, sending, sending_densely
from tightgrad.sync.flush import densely_summed, on_every_rank
from tightgrad.sync.protocol import GradientSync, Summed
from tightgrad.sync.same_sum import check_same_sum


class AfterBackward(GradientSync):
    """Sums the gradients of a module whose wrapper does not, when all of them are there.

    Args:
        adapter: of the module.
        plan: that runs.
        seed: of all random numbers that methods draw.
        clock: takes the seconds of the stages.
    """

    def __init__(self, adapter: Adapter, plan: Resolved, seed: int, clock: StageClock) -> None:
        self._adapter, self._plan, self._seed, self._clock = adapter, plan, seed, clock

    def sum(self, grads: Grads, norm: GradNorm) -> Summed:
        """Return the sums over ranks, unscaled. Collective: every rank must call it, or `fail`."""
        return self._summed(grads, norm, self._compressed)

    def _summed(self, grads: Grads, norm: GradNorm, send: Callable[[Grads, GradNorm], Summed]) -> Summed:
        """Ask all ranks whether to go on and which parameters any used; zeros stand for those that this did not."""
        unscale_(grads, self._facts.factor)
        with self._clock("guard"):
            finite = self._plan.guard.admits_(grads, norm, self._plan.largest_norm)
            voted = vote(grads, list(self._adapter.parameters), finite, self._adapter.collective)
            grads = completed(grads, voted.used, self._adapter.parameters)
        if not voted.finite:
            return Summed(grads, self._facts.slots, finite=False)
        self._clip_locally_(grads, norm)
        return send(grads, norm)

    def _clip_locally_(self, grads: Grads, norm: GradNorm) -> None:
        """Limit what this rank adds to the sum over ranks to local_clip / sqrt(ranks)."""
        if self._plan.local_clip is None:
            return
        with self._clock("local_clip"):
            bound = self._plan.local_clip / math.sqrt(self._adapter.collective.world_size)
            scale_(grads.values(), clip_coefficient(norm(list(grads.values())), bound))

    def _compressed(self, grads: Grads, norm: GradNorm) -> Summed:
        """Send by the plan's method; where that leaves out more than the plan allows, again and densely."""
        compress, collective = self._plan.compress, self._adapter.collective
        if collective.world_size == 1 and compress.reducer.leaves_nothing:
            return Summed(grads, self._facts.slots)
        context = self._facts.context(collective, self._seed, self._clock)
        send = sending(compress.reducer, compress.codec, context)
        bound = compress.max_relative_error
        if bound is None:
            owned = owns_storage(grads)
            return self._delivered(
                grads, reduce_gradients(grads, compress, self._facts.slots, send, owned), context, norm
            )
        meter = ErrorMeter()
        reduced = reduce_gradients(grads, compress, self._facts.slots, meter.around(send))
        error = meter.agreed(collective).relative_error
        summed = self._densely(grads, norm) if error > bound else self._delivered(grads, reduced, context, norm)
        return replace(summed, relative_error=error, fell_back=error > bound)

    def _densely(self, grads: Grads, norm: GradNorm) -> Summed:
        """Send uncompressed; feedback goes along."""
        context = replace(self._facts, observe=None).context(self._adapter.collective, self._seed, self._clock)
        send = sending_densely(context)
        return self._delivered(
            grads, reduce_gradients(grads, self._plan.compress, self._facts.slots, send), context, norm
        )

    def _delivered(self, grads: Grads, reduced: Reduced, context: ReduceContext, norm: GradNorm) -> Summed:
        totals = {name: in_layout(reduced.total[name], grad, grad.dtype) for name, grad in grads.items()}
        self._check_same_sum(totals, context.failures, norm)
        return Summed(totals, reduced.state)

    def _check_same_sum(self, totals: Grads, failures: Sequence[str], norm: GradNorm) -> None:
        """Make sure that all ranks have received the same. Collective."""
        if self._adapter.collective.world_size > 1 and not self._plan.compress.reducer.leaves_nothing:
            with self._clock("guard"):
                check_same_sum(failures, norm(list(totals.values())), self._adapter.collective)

    def sum_residuals(self, residuals: Grads) -> Grads:
        """Return the sums over ranks of what each has not sent yet. Collective: every rank must call it."""
        parameters, collective = self._adapter.parameters, self._adapter.collective
        totals = densely_summed(on_every_rank(residuals, self._adapter), collective, self._clock)
        return {name: total.to(parameters[name].dtype) for name, total in totals.items()}

    def fail(self, why: str) -> None:
        """Take part in the vote only to make it an error on the other ranks. Collective, as `sum`."""
        vote_failure(list(self._adapter.parameters), self._adapter.collective, why)
