"""Reduction in FSDP2's reduce-scatter: feedback and codec for each FSDP module, during the window's last backward."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tightgrad.adapters.fsdp2_hand_over import Unit, UnitHandOver
from tightgrad.clip.norm import total_norm
from tightgrad.codecs import Cast
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import IncompatiblePlanError, UsageError
from tightgrad.core.protocols import Codec, Observe, ReduceContext, Sizes
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, Reduced, State
from tightgrad.plan.plan import Compress, Plan
from tightgrad.reducers.scatter import shards_of_sums
from tightgrad.sync.compressed import merge
from tightgrad.sync.fallback import ErrorMeter
from tightgrad.sync.outcome import Outcome

Send = Callable[[Grads], Reduced]


def refuses_shards(plan: Plan) -> str | None:
    """Say why a plan cannot run where each rank keeps a shard of every gradient; None if it can."""
    compress = plan.compress
    assert compress is not None
    assert compress.reducer is not None
    reason = refuses_in_backward(plan) or compress.reducer.refuses_shards(compress.codec)
    if reason is None and compress.feedback is not None and not compress.feedback.works_on_shards:
        reason = (
            f"{compress.feedback.card.id} remembers whole sums over ranks, of which FSDP2 gives each rank a shard; use "
            "error_feedback"
        )
    return reason


def refuses_in_backward(plan: Plan) -> str | None:
    """Say why a plan cannot run while FSDP2's backward goes on; None if it can."""
    assert plan.guard is not None
    if plan.local_clip is not None:
        return "local_clip needs the norm of the whole local gradient, which is gone when backward ends; drop it"
    if plan.guard.on_nonfinite == "zero":
        return 'on_nonfinite="zero" needs whole gradients, and FSDP2 cuts them; use "skip" or "raise"'
    return None


class ShardedReduction:
    """Takes units from the adapter and fills their shards; `finish` tells what came of it."""

    def __init__(self, hand_over: UnitHandOver, plan: Plan, seed: int, clock: StageClock) -> None:
        assert plan.compress is not None
        reason = self.refuses(plan)
        if reason is not None:
            raise IncompatiblePlanError(f"{reason}.")
        self._hand_over = hand_over
        self._compress: Compress = plan.compress
        self._seed = seed
        self._clock = clock
        self._receives = False
        self.open({}, 0, 1.0, idle=True)
        self._receives = False
        hand_over.serve(self._receive)

    def refuses(self, plan: Plan) -> str | None:
        """Say why a plan cannot run here; None if it can."""
        return refuses_shards(plan)

    def open(
        self, slots: State, step: int, factor: float, *, idle: bool = False, observe: Observe | None = None
    ) -> None:
        """Begin the last backward of a window.

        Args:
            slots: what the methods remember.
            step: number of applied steps.
            factor: gradients are multiplied by it.
            idle: nothing will be delivered, since nothing in the window counts.
            observe: is told what was to be sent and what of it was.
        """
        collective = self._hand_over.background
        rng = StepRng(self._seed, step, collective.rank)
        self._context = ReduceContext(collective, rng, self._clock, observe=observe)
        self._slots = slots
        self._factor = factor
        self._idle = idle
        self._receives = True
        self._finite = True
        self._used: set[str] = set()
        self._nonfinite: dict[str, int] = {}
        self._seen: set[str] = set()
        self._meter = ErrorMeter() if self._compress.fallback is not None else None
        self._fell_back = False

    @torch.no_grad()
    def _receive(self, unit: Unit) -> None:
        if not self._receives:
            raise UsageError(
                "the backward of the FSDP module ran outside of a window; run it inside `for batch in window:`."
            )
        if self._seen & unit.rows.keys():
            raise UsageError(
                f"gradients of {next(iter(unit.rows))!r} and others came a second time before the step: one backward "
                "more than the window has micro-batches. Call pipe.backward() once for each."
            )
        self._seen.update(unit.rows)
        if self._idle:
            unit.output.zero_()
            return
        pieces = [piece for row in unit.rows.values() for piece in row]
        with self._clock("guard"):
            is_finite = bool(torch.isfinite(total_norm(pieces) * self._factor))
            if not is_finite:
                self._nonfinite.update(_counts(unit))
            used = self._agree(unit, is_finite)
        if not self._finite:
            unit.output.fill_(float("nan"))
            return
        self._used.update(used)
        totals = self._reduced(unit, used)
        unit.output.zero_()  # between nodes the gradients themselves lie here
        for name, total in totals.items():
            unit.shards[name].copy_(total)

    def _agree(self, unit: Unit, is_finite: bool) -> list[str]:
        """One vote on whether all is finite and which parameters any rank used."""
        flags = torch.tensor([not is_finite, *(name in unit.used for name in unit.rows)], dtype=torch.int32)
        collective = self._context.collective
        not_finite, *used = collective.all_reduce_(flags.to(collective.control_device), "max").tolist()
        self._finite = self._finite and not not_finite
        return [name for name, flag in zip(unit.rows, used, strict=True) if flag]

    def _reduced(self, unit: Unit, names: Sequence[str]) -> Grads:
        """This rank's shards of the sums."""
        sizes = {name: [piece.numel() for piece in unit.rows[name]] for name in names}
        grads = {name: self._whole(unit.rows[name], unit.shapes[name]) for name in names}
        meter = ErrorMeter() if self._meter is not None else None
        reduced = self._sent(grads, sizes, self._compress.codec, meter)
        bound = self._compress.max_relative_error
        if meter is not None and self._meter is not None and bound is not None:
            meter = meter.agreed(self._context.collective)
            self._meter += meter
            if meter.relative_error > bound:
                self._fell_back = True
                reduced = self._sent_densely(grads, sizes)
        self._slots = merge(self._slots, reduced.state)
        return reduced.total

    def _sent_densely(self, grads: Grads, sizes: Sizes) -> Reduced:
        """Uncompressed."""
        return self._compensated(grads, lambda values: shards_of_sums(values, sizes, Cast("float32"), self._context))

    def _sent(self, grads: Grads, sizes: Sizes, codec: Codec | None, meter: ErrorMeter | None) -> Reduced:
        """Feedback and the plan's reducer."""

        def send(values: Grads) -> Reduced:
            assert self._compress.reducer is not None
            reduced = self._compress.reducer.reduce_to_shards(values, sizes, codec, self._slots, self._context)
            if meter is not None:
                meter.add(values, reduced.transmitted)
            if self._context.observe is not None:
                self._context.observe(values, reduced.transmitted)
            return reduced

        return self._compensated(grads, send)

    def _compensated(self, grads: Grads, send: Send) -> Reduced:
        feedback = self._compress.feedback
        if feedback is None:
            return send(grads)
        clones = {name: grad.clone() for name, grad in grads.items()}  # a fallback sends them again
        return feedback.reduce_(clones, self._slots, send)

    def _whole(self, pieces: Sequence[Tensor], shape: torch.Size) -> Tensor:
        whole = torch.cat([piece.float() for piece in pieces]).view(shape)
        return whole if self._factor == 1.0 else whole.mul_(self._factor)

    def finish(self) -> Outcome:
        """Return what came of the backward. Collective: every rank must call it."""
        self._receives = False
        unused = [name for name in self._hand_over.parameters if name not in self._used]
        if self._finite:
            for name in unused:
                self._hand_over.parameters[name].grad = None
        return Outcome(
            None,
            self._slots,
            self._finite,
            tuple(self._context.failures),
            self._nonfinite,
            self._meter,
            self._fell_back,
            frozenset(unused),
        )

    def drop(self) -> None:
        """Forget what is under way."""
        self._receives = False

    def abandon(self) -> None:
        """Drop the window: nothing is under way between two calls."""
        self.drop()


def _counts(unit: Unit) -> Mapping[str, int]:
    """Entries that are inf or NaN, by name."""
    counts = {name: sum(int((~torch.isfinite(piece)).sum()) for piece in row) for name, row in unit.rows.items()}
    return {name: count for name, count in counts.items() if count}
