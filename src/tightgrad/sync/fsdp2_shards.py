"""The sum over ranks inside FSDP2's communication: feedback and codec for each FSDP module, during the window's last
backward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tightgrad.adapters.fsdp2_hand_over import NodeHandOver, Unit, UnitHandOver
from tightgrad.adapters.plain import Adapter
from tightgrad.clip.norm import total_norm
from tightgrad.codecs import Cast
from tightgrad.core.clock import StageClock
from tightgrad.core.collective import largest_over_ranks
from tightgrad.core.errors import IncompatiblePlanError, UsageError
from tightgrad.core.protocols import GradNorm, ReduceContext, Sizes
from tightgrad.core.types import Grads, Reduced, State
from tightgrad.plan.guard import vote, vote_failure
from tightgrad.plan.plan import Resolved
from tightgrad.reducers.scatter import reduce_scatter_encoded, shards_of_sums
from tightgrad.sync.compressed import merge, reduce_gradients
from tightgrad.sync.fallback import ErrorMeter, Send, observed, sending, sending_densely
from tightgrad.sync.flush import densely_summed, on_every_rank, without_chance
from tightgrad.sync.protocol import GradientSync, Summed, WindowFacts
from tightgrad.sync.same_sum import check_same_sum


def refuses_shards(plan: Resolved) -> str | None:
    """Say why a plan cannot run where each rank keeps a shard of every gradient; None if it can."""
    compress = plan.compress
    reason = refuses_in_backward(plan) or compress.reducer.refuses_shards(compress.codec)
    if reason is None and compress.feedback is not None and not compress.feedback.works_on_shards:
        reason = (
            f"{compress.feedback.card.id} remembers whole sums over ranks, of which FSDP2 gives each rank a shard; use "
            "error_feedback"
        )
    return reason


def refuses_in_backward(plan: Resolved) -> str | None:
    """Say why a plan cannot run while FSDP2's backward goes on; None if it can."""
    if plan.local_clip is not None:
        return "local_clip needs the norm of the whole local gradient, which is gone when backward ends; drop it"
    if plan.guard.on_nonfinite == "zero":
        return 'on_nonfinite="zero" needs whole gradients, and FSDP2 cuts them; use "skip" or "raise"'
    return None


class FSDP2Shards(GradientSync):
    """Takes the whole gradients of one FSDP module after the other, and fills this rank's shards of their sums.

    Args:
        adapter: of the model.
        hand_over: hands the modules over.
        plan: that runs.
        seed: of all random numbers that methods draw.
        clock: takes the seconds of the stages.

    Raises:
        IncompatiblePlanError: the plan cannot run on shards.
    """

    commits_in_backward = True

    def __init__(self, adapter: Adapter, hand_over: UnitHandOver, plan: Resolved, seed: int, clock: StageClock) -> None:
        reason = self.refuses(plan)
        if reason is not None:
            raise IncompatiblePlanError(f"{reason}.")
        self._adapter, self._hand_over = adapter, hand_over
        self._compress, self._seed, self._clock = plan.compress, seed, clock
        self._receives = False

    @staticmethod
    def refuses(plan: Resolved) -> str | None:
        """Say why a plan cannot run here; None if it can."""
        return refuses_shards(plan)

    def connect(self) -> None:
        """Make the groups of ranks, and take gradients from now on. Collective: every rank must call it."""
        self._hand_over.connect()
        self._hand_over.serve(self._receive)

    def begin(self, facts: WindowFacts) -> None:
        """Begin a window, before its first forward."""
        super().begin(facts)
        self._context = facts.context(self._hand_over.background, self._seed, self._clock)
        self._slots: State = facts.slots
        self._receives = True
        self._finite = True
        self._used: set[str] = set()
        self._nonfinite: dict[str, int] = {}
        self._seen: set[str] = set()
        self._meter = ErrorMeter()
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
        if self._facts.idle:
            unit.output.zero_()
            return
        pieces = [piece for row in unit.rows.values() for piece in row]
        with self._clock("guard"):
            is_finite = bool(torch.isfinite(total_norm(pieces) * self._facts.factor))
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
        flags = [not is_finite, *(name in unit.used for name in unit.rows)]
        not_finite, *used = largest_over_ranks(flags, self._context.collective)
        self._finite = self._finite and not not_finite
        return [name for name, flag in zip(unit.rows, used, strict=True) if flag]

    def _reduced(self, unit: Unit, names: Sequence[str]) -> Grads:
        """This rank's shards of the sums; sent again, densely, where too much was left out."""
        sizes = {name: [piece.numel() for piece in unit.rows[name]] for name in names}
        grads = {name: self._whole(unit.rows[name], unit.shapes[name]) for name in names}
        bound = self._compress.max_relative_error
        if bound is None:
            reduced = self._sent(grads, self._sending(sizes))
        else:
            here = ErrorMeter()
            reduced = self._sent(grads, here.around(self._sending(sizes)))
            over_ranks = here.agreed(self._context.collective)
            self._meter += over_ranks
            if over_ranks.relative_error > bound:
                self._fell_back = True
                reduced = self._sent(grads, self._sending_densely(sizes))
        self._slots = merge(self._slots, reduced.state)
        return reduced.total

    def _sending(self, sizes: Sizes) -> Send:
        """By the plan's reducer, which keeps each rank's shard."""
        reduce, codec, context = self._compress.reducer.reduce_to_shards, self._compress.codec, self._context
        return observed(lambda values, state: reduce(values, sizes, codec, state, context), context)

    def _sending_densely(self, sizes: Sizes) -> Send:
        """Uncompressed."""
        return lambda values, /, state: shards_of_sums(values, sizes, Cast("float32"), self._context)

    def _sent(self, grads: Grads, send: Send) -> Reduced:
        """With feedback, which may have the gradients if they are not sent again."""
        owned = frozenset(grads if self._compress.max_relative_error is None else ())
        return reduce_gradients(grads, self._compress, self._slots, send, owned)

    def _whole(self, pieces: Sequence[Tensor], shape: torch.Size) -> Tensor:
        whole = torch.cat([piece.float() for piece in pieces]).view(shape)
        return whole if self._facts.factor == 1.0 else whole.mul_(self._facts.factor)

    def sum(self, grads: Grads, norm: GradNorm) -> Summed:
        """Return this rank's shards of the sums, of what any rank used. Collective: every rank must call it, or
        `fail`.
        """
        self._receives = False
        if not self._finite:
            return Summed({}, self._slots, finite=False, nonfinite=self._nonfinite)
        vote((), (), True, self._adapter.collective)
        for name, parameter in self._adapter.parameters.items():
            if name not in self._used:
                parameter.grad = None  # the zeros that FSDP2 has put there
        # Not `parameter.grad`: low-precision gradients have been moved on into float32 sums.
        totals = {name: grad for name, grad in grads.items() if name in self._used}
        if self._adapter.collective.world_size > 1 and not self._compress.reducer.leaves_nothing:
            with self._clock("guard"):
                check_same_sum(self._context.failures, norm(list(totals.values())), self._adapter.collective)
        error = None if self._compress.max_relative_error is None else self._meter.relative_error
        return Summed(totals, self._slots, relative_error=error, fell_back=self._fell_back)

    def sum_residuals(self, residuals: Grads) -> Grads:
        """Return this rank's shards of the sums of what each has not sent yet. Collective: every rank must call it."""
        mine = on_every_rank(residuals, self._adapter)
        sizes = {name: self._hand_over.shard_numels(name) for name in mine}
        context = without_chance(self._adapter.collective, self._clock)
        shards, _ = reduce_scatter_encoded(mine, sizes, Cast("float32"), context)
        return {name: self._hand_over.as_gradient(name, shard) for name, shard in shards.items()}

    def fail(self, why: str) -> None:
        """Take part in the vote only to make it an error on the other ranks. Collective, as `sum`."""
        if self._finite:  # else all ranks know already
            vote_failure((), self._adapter.collective, why)
        self.cancel()

    def cancel(self) -> None:
        """Forget the window: between two calls nothing is under way."""
        self._receives = False


class FSDP2Nodes(FSDP2Shards):
    """Sums shards, which FSDP2 has summed within each node, among the ranks that keep the same ones on other nodes."""

    _hand_over: NodeHandOver

    @staticmethod
    def refuses(plan: Resolved) -> str | None:
        """Say why a plan cannot run here; None if it can."""
        return plan.compress.reducer.refuses_between_nodes(plan.compress.codec) or refuses_in_backward(plan)

    def _sending(self, sizes: Sizes) -> Send:
        return sending(self._compress.reducer, self._compress.codec, self._between_nodes())

    def _sending_densely(self, sizes: Sizes) -> Send:
        return sending_densely(replace(self._between_nodes(), observe=None))

    def _between_nodes(self) -> ReduceContext:
        return replace(self._context, collective=self._hand_over.between_nodes)

    def sum_residuals(self, residuals: Grads) -> Grads:
        """Return the sums over nodes of this rank's shards. Collective: every rank must call it."""
        mine = on_every_rank(residuals, self._adapter)
        totals = densely_summed(mine, self._hand_over.between_nodes, self._clock)
        return {name: self._hand_over.as_gradient(name, total) for name, total in totals.items()}


def _counts(unit: Unit) -> Mapping[str, int]:
    """Entries that are inf or NaN, by name."""
    counts = {name: sum(int((~torch.isfinite(piece)).sum()) for piece in row) for name, row in unit.rows.items()}
    return {name: count for name, count in counts.items() if count}
