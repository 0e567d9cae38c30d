"""Reduction between nodes in FSDP2's all-reduce hook: each rank's shards, already summed within its node."""

from dataclasses import replace

from tightgrad.adapters.fsdp2_hand_over import NodeHandOver
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import Codec, ReduceContext, Sizes
from tightgrad.core.types import Grads, Reduced
from tightgrad.plan.plan import Plan
from tightgrad.sync.compressed import reduce_gradients
from tightgrad.sync.fallback import ErrorMeter, sending, sending_densely
from tightgrad.sync.fsdp2_shards import ShardedReduction, refuses_in_backward


class NodeReduction(ShardedReduction):
    """A reducer of whole tensors, which are shards here, among the ranks that keep the same ones."""

    def __init__(self, hand_over: NodeHandOver, plan: Plan, seed: int, clock: StageClock) -> None:
        self._between_nodes = hand_over.between_nodes
        super().__init__(hand_over, plan, seed, clock)

    def refuses(self, plan: Plan) -> str | None:
        """Say why a plan cannot run here; None if it can."""
        compress = plan.compress
        assert compress is not None
        assert compress.reducer is not None
        if compress.reducer.card.id == "hierarchical":
            return "FSDP2 sums within nodes already, and compress runs between them; use the inner reducer by itself"
        if compress.reducer.card.scope == "matrix" or (compress.codec is not None and compress.codec.scope == "matrix"):
            return (
                f"{compress.reducer.card.id} needs matrices, and shards have none; use two_shot, or gather with a "
                "sparse codec"
            )
        return refuses_in_backward(plan)

    def _sent_densely(self, grads: Grads, sizes: Sizes) -> Reduced:
        context = replace(self._between(), observe=None)
        return reduce_gradients(grads, self._compress, self._slots, context, sending_densely(context))

    def _sent(self, grads: Grads, sizes: Sizes, codec: Codec | None, meter: ErrorMeter | None) -> Reduced:
        assert self._compress.reducer is not None
        context = self._between()
        send = sending(self._compress.reducer, codec, context)
        if meter is not None:
            send = meter.around(send)
        return reduce_gradients(grads, self._compress, self._slots, context, send)

    def _between(self) -> ReduceContext:
        """This step's context, among the ranks that keep the same shards."""
        return replace(self._context, collective=self._between_nodes)
