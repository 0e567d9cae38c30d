"""All residuals, delivered densely in one step: before the plan, the wrapper or the number of ranks changes, or at the
end of training.
"""

from collections.abc import Mapping

import torch

from tightgrad.adapters.fsdp2_encoded import FSDP2EncodedAdapter
from tightgrad.adapters.fsdp2_nodes import FSDP2NodesAdapter
from tightgrad.codecs import Cast
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Adapter, ReduceContext
from tightgrad.core.types import Grads, Slot, State
from tightgrad.feedback.error_feedback import RESIDUAL
from tightgrad.pipeline.guard import vote
from tightgrad.reducers import Dense
from tightgrad.reducers.scatter import reduce_scatter_encoded


def residual_slot(slots: Mapping[str, Slot]) -> Slot:
    """The slot of a plan's residuals.

    Raises:
        UsageError: the plan keeps none.
    """
    if RESIDUAL.name not in slots:
        raise UsageError(
            "flush() delivers residuals, and this plan keeps none; give Compress a feedback such as ErrorFeedback()."
        )
    return slots[RESIDUAL.name]


def summed_residuals(state: State, slot: Slot, adapter: Adapter, context: ReduceContext) -> Grads:
    """The sum over ranks of what each has not sent yet, as gradients. Collective: every rank must call it.

    Parameters without a residual on any rank are left out.
    """
    parameters = adapter.parameters
    shapes = adapter.remembered_shapes or {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    held = {name: slot.values(tensor).view(shapes[name]) for name, tensor in state.get(slot.name, {}).items()}
    device = next(iter(parameters.values())).device
    voted = vote(held, list(parameters), finite=True, collective=adapter.collective).used
    mine = {
        name: held[name].contiguous() if name in held else torch.zeros(shapes[name], device=device)
        for name in parameters
        if name in voted
    }
    if isinstance(adapter, FSDP2NodesAdapter):
        between = ReduceContext(adapter.between_nodes, context.rng, context.clock)
        sums = Dense().reduce(mine, None, {}, between).total
        return {name: adapter.as_gradient(name, shard) for name, shard in sums.items()}
    if not isinstance(adapter, FSDP2EncodedAdapter):
        total = Dense().reduce(mine, None, {}, context).total
        return {name: grad.to(parameters[name].dtype) for name, grad in total.items()}
    sizes = {name: adapter.shard_numels(name) for name in mine}
    shards, _ = reduce_scatter_encoded(mine, sizes, Cast("float32"), context)
    return {name: adapter.as_gradient(name, shard) for name, shard in shards.items()}


def without_residuals(state: State, slot: Slot) -> State:
    """The state after they were delivered."""
    return {name: values for name, values in state.items() if name != slot.name}
