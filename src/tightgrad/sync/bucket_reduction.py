"""One step's reduction, bucket by bucket, on the thread that talks to the other ranks.

What is delivered and remembered is bitwise what `reduce_gradients` gives for all gradients at once, because reducers
treat each tensor by itself. The new state is kept apart until the step is applied.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.adapters.parts.ready_once import grew_late
from tightgrad.clip.norm import total_norm
from tightgrad.clip.placed import zero_nonfinite_
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Collective, Observe, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, State
from tightgrad.plan.plan import Compress
from tightgrad.sync.compressed import reduce_gradients
from tightgrad.sync.fallback import ErrorMeter, sending
from tightgrad.sync.lockstep import Notice, Round, agree, shown


class BucketReduction:
    """Every method is collective: every rank must call it in the same order.

    Args:
        collective: the ranks.
        compress: codec, reducer, feedback.
        seed: of all random numbers that methods draw.
        clock: takes the seconds of the stages.
        on_nonfinite: the guard's policy.
        votes_on_use: whether ranks ask each other which parameters any of them used.

    Attributes:
        totals: sums over ranks so far, by parameter name.
        slots: what the methods would remember.
        finite: whether all gradients of all ranks were finite so far.
        meter: what compression left out on this rank; None where no fallback asks for it.
        failures: what could not be decoded.
    """

    def __init__(
        self,
        collective: Collective,
        compress: Compress,
        seed: int,
        clock: StageClock,
        *,
        on_nonfinite: str,
        votes_on_use: bool,
    ) -> None:
        self._collective = collective
        self._compress = compress
        self._seed = seed
        self._clock = clock
        self._on_nonfinite = on_nonfinite
        self._votes_on_use = votes_on_use
        self.open({}, 0, 1.0)

    def open(self, slots: State, step: int, factor: float, observe: Observe | None = None) -> None:
        """Begin a step of this reduction.

        Args:
            slots: what the methods remember.
            step: number of applied steps.
            factor: gradients are multiplied by it before anything else.
            observe: is told what was to be sent and what of it was.
        """
        rng = StepRng(self._seed, step, self._collective.rank)
        self._context = ReduceContext(self._collective, rng, self._clock, observe=observe)
        self._factor = factor
        self._norms: list[Tensor] = []
        self.meter = ErrorMeter() if self._compress.fallback is not None else None
        self.totals: Grads = {}
        self.slots = slots
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
        with self._clock("guard"):
            values = self._prepared(grads)
            is_finite = self._is_finite(values)
        seen = agree(
            Round.BUCKET, tuple(grads), notice | (Notice.NOTHING if is_finite else Notice.NONFINITE), self._collective
        )
        if seen & Notice.REPEATED:
            raise UsageError(
                f"gradients of {shown(tuple(grads))} came a second time before the step: a synchronised backward ran "
                "on gradients that were delivered already. Hold no_sync() around forward and backward of all but the "
                "last micro-batch, clear gradients after each step, and freeze this network (requires_grad_(False)) "
                "while the backward of another one passes through it."
            )
        self.finite = self.finite and not seen & Notice.NONFINITE
        if not self.finite:
            return {}
        voted = self._vote(tuple(grads), used) if self._votes_on_use else used
        assert self._compress.reducer is not None
        send = sending(self._compress.reducer, self._compress.codec, self._context)
        reduced = reduce_gradients(
            {name: value for name, value in values.items() if name in voted},
            self._compress,
            self.slots,
            self._context,
            self.meter.around(send) if self.meter is not None else send,
        )
        self.slots = reduced.state
        self.totals.update(reduced.total)
        return reduced.total

    def end(self, names: Sequence[str], missing: Sequence[str], late: list[str]) -> None:
        """End the step of this reduction.

        Args:
            names: all parameters.
            missing: those whose gradients did not come on this rank.
            late: those whose gradients grew on this rank after they had been reduced.

        Raises:
            UsageError: on every rank, when gradients are missing, or grew late, on any.
            RankMismatchError: on every rank, when another one goes on.
        """
        whole = total_norm(self._norms) if self._norms else torch.zeros(())
        notice = Notice.NOTHING if bool(torch.isfinite(whole)) else Notice.NONFINITE
        notice |= Notice.MISSING if missing else Notice.NOTHING
        notice |= Notice.LATE if late else Notice.NOTHING
        seen = agree(Round.END, names, notice, self._collective)
        if seen & Notice.LATE:
            raise UsageError(grew_late(late) if late else f"on another rank, {grew_late(['some parameters'])}")
        if seen & Notice.MISSING:
            here = f"here those of {shown(missing)}" if missing else "here none"
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
        flags = torch.tensor([name in used for name in names], dtype=torch.int32)
        voted = self._collective.all_reduce_(flags.to(self._collective.control_device), "max").tolist()
        return frozenset(name for name, flag in zip(names, voted, strict=True) if flag)
