"""One step's reduction, bucket by bucket, on the thread that talks to the other ranks.

What is delivered and remembered is bitwise what `reduce_gradients` gives for all gradients at once, because reducers
treat each tensor by itself. The new state is kept apart until the step is applied.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.adapters.parts.ready_once import grew_late
from tightgrad.clip.dtensor import zero_nonfinite_
from tightgrad.clip.norm import total_norm
from tightgrad.core.collective import largest_over_ranks
from tightgrad.core.errors import UsageError
from tightgrad.core.notices import named
from tightgrad.core.protocols import ReduceContext
from tightgrad.core.types import Grads
from tightgrad.plan.plan import ResolvedCompress
from tightgrad.sync.compressed import reduce_gradients
from tightgrad.sync.fallback import ErrorMeter, sending
from tightgrad.sync.protocol import WindowFacts
from tightgrad.sync.same_round import Notice, Round, agree


class BucketReduction:
    """Reduces the buckets of one backward. Every method is collective: every rank must call it in the same order.

    Args:
        compress: codec, reducer, feedback.
        facts: of the step.
        context: the ranks, random numbers and clock of the thread.
        on_nonfinite: the guard's policy.
        votes_on_use: whether ranks ask each other which parameters any of them used.

    Attributes:
        totals: sums over ranks so far, by parameter name.
        slots: what the methods would remember.
        finite: whether all gradients of all ranks were finite so far.
        meter: what compression left out on this rank; None where no fallback asks for it.
    """

    def __init__(
        self,
        compress: ResolvedCompress,
        facts: WindowFacts,
        context: ReduceContext,
        *,
        on_nonfinite: str,
        votes_on_use: bool,
    ) -> None:
        self._compress = compress
        self._factor = facts.factor
        self._context = context
        self._on_nonfinite = on_nonfinite
        self._votes_on_use = votes_on_use
        self._norms: list[Tensor] = []
        self.meter = ErrorMeter() if compress.max_relative_error is not None else None
        self.totals: Grads = {}
        self.slots = facts.slots
        self.finite = True

    @property
    def failures(self) -> Sequence[str]:
        """Return why payloads of this step could not be decoded."""
        return self._context.failures

    @torch.no_grad()
    def reduce(self, grads: Grads, used: frozenset[str], notice: Notice) -> Grads:
        """Sum a bucket's gradients over ranks; the totals of those that any rank used, none once any is not finite.

        Args:
            grads: this rank's, left as they are.
            used: names of those that this rank used.
            notice: what else the other ranks must know.

        Raises:
            UsageError: on every rank, when any had these gradients before.
            RankMismatchError: on every rank, when they come with different buckets.
        """
        with self._context.clock("guard"):
            values = self._prepared(grads)
            is_finite = self._is_finite(values)
        seen = agree(
            Round.BUCKET,
            tuple(grads),
            notice | (Notice.NOTHING if is_finite else Notice.NONFINITE),
            self._context.collective,
        )
        if seen & Notice.REPEATED:
            raise UsageError(
                f"gradients of {named(tuple(grads))} came a second time before the step: a synchronised backward ran "
                "on gradients that were delivered already. Hold no_sync() around forward and backward of all but the "
                "last micro-batch, clear gradients after each step, and freeze this network (requires_grad_(False)) "
                "while the backward of another one passes through it."
            )
        self.finite = self.finite and not seen & Notice.NONFINITE
        if not self.finite:
            return {}
        voted = self._vote(tuple(grads), used) if self._votes_on_use else used
        send = sending(self._compress.reducer, self._compress.codec, self._context)
        reduced = reduce_gradients(
            {name: value for name, value in values.items() if name in voted},
            self._compress,
            self.slots,
            self.meter.around(send) if self.meter is not None else send,
        )
        self.slots = reduced.state
        self.totals.update(reduced.total)
        return reduced.total

    def end(self, names: Sequence[str], missing: Sequence[str], late: list[str]) -> None:
        """End the backward: agree that all gradients came, once each.

        Args:
            names: all parameters.
            missing: those whose gradients did not come on this rank.
            late: those whose gradients grew on this rank after they had been reduced.

        Raises:
            UsageError: on every rank, when gradients are missing, or grew late, on any.
            RankMismatchError: on every rank, when another one goes on.
        """
        whole = total_norm(self._norms) if self._norms else torch.zeros((), dtype=torch.float32, device="cpu")
        notice = Notice.NOTHING if bool(torch.isfinite(whole)) else Notice.NONFINITE
        notice |= Notice.MISSING if missing else Notice.NOTHING
        notice |= Notice.LATE if late else Notice.NOTHING
        seen = agree(Round.END, names, notice, self._context.collective)
        if seen & Notice.LATE:
            raise UsageError(grew_late(late) if late else f"on another rank, {grew_late(['some parameters'])}")
        if seen & Notice.MISSING:
            here = f"here those of {named(missing)}" if missing else "here none"
            raise UsageError(
                f"gradients did not come on every rank ({here}): parameters went unused. Wrap the model with "
                'DistributedDataParallel(find_unused_parameters=True), or take Compress(overlap="none").'
            )
        self.finite = self.finite and not seen & Notice.NONFINITE

    def _prepared(self, grads: Grads) -> Grads:
        values = {name: grad.float() if grad.dtype in LOW_PRECISION else grad for name, grad in grads.items()}
        if self._factor != 1.0:
            values = {name: value * self._factor for name, value in values.items()}
        return values

    def _is_finite(self, values: Grads) -> bool:
        """Whether the guard lets these gradients pass, after it may have replaced them."""
        if self._on_nonfinite == "propagate":
            return True
        norm = total_norm(list(values.values()))
        if self._on_nonfinite == "zero":
            if not bool(torch.isfinite(norm)):
                values.update({name: value.clone() for name, value in values.items()})
                zero_nonfinite_(values.values())
            return True
        self._norms.append(norm)
        return bool(torch.isfinite(norm))

    def _vote(self, names: Sequence[str], used: frozenset[str]) -> frozenset[str]:
        voted = largest_over_ranks([name in used for name in names], self._context.collective)
        return frozenset(name for name, flag in zip(names, voted, strict=True) if flag)
