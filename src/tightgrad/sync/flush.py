"""All residuals, delivered densely in one step: before the plan, the wrapper or the number of ranks changes, or at the
end of training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tightgrad.codecs import Cast
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Adapter, ReduceContext
from tightgrad.core.types import Grads, Slot, State, slots_with
from tightgrad.plan.guard import vote
from tightgrad.reducers import Dense
from tightgrad.reducers.scatter import reduce_scatter_encoded


def residual_slots(slots: Mapping[str, Slot]) -> list[Slot]:
    """Return the slots of a plan that hold residuals, whatever their names.

    Raises:
        UsageError: the plan keeps none.
    """
    found = slots_with("residual", slots)
    if found:
        return found
    own = [repr(slot.name) for slot in slots.values() if slot.across_ranks == "sum"]
    hint = f' If {" or ".join(own)} holds what was not sent, its Slot needs role="residual".' if own else ""
    raise UsageError(
        f"flush() delivers residuals, and this plan keeps none; give Compress a feedback such as ErrorFeedback().{hint}"
    )


def summed_residuals(state: State, slots: Sequence[Slot], adapter: Adapter, context: ReduceContext) -> Grads:
    """Return the sum over ranks of what each has not sent yet, as gradients. Collective: every rank must call it.

    Parameters without a residual on any rank are left out.
    """
    parameters = adapter.parameters
    shapes = adapter.remembered_shapes or {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    held: Grads = {}
    for slot in slots:
        for name, tensor in state.get(slot.name, {}).items():
            values = slot.values(tensor).view(shapes[name])
            held[name] = held[name] + values if name in held else values
    device = next(iter(parameters.values())).device
    voted = vote(held, list(parameters), finite=True, collective=adapter.collective).used
    mine = {
        name: held[name].contiguous() if name in held else torch.zeros(shapes[name], device=device)
        for name in parameters
        if name in voted
    }
    hand_over: Any = adapter.hand_over
    if hand_over is not None and hand_over.kind == "nodes":
        between = ReduceContext(hand_over.between_nodes, context.rng, context.clock)
        sums = Dense().reduce(mine, None, {}, between).total
        return {name: hand_over.as_gradient(name, shard) for name, shard in sums.items()}
    if hand_over is None or hand_over.kind != "units":
        total = Dense().reduce(mine, None, {}, context).total
        return {name: grad.to(parameters[name].dtype) for name, grad in total.items()}
    sizes = {name: hand_over.shard_numels(name) for name in mine}
    shards, _ = reduce_scatter_encoded(mine, sizes, Cast("float32"), context)
    return {name: hand_over.as_gradient(name, shard) for name, shard in shards.items()}


def without_residuals(state: State, slots: Sequence[Slot]) -> State:
    """Return the state after they were delivered."""
    delivered = {slot.name for slot in slots}
    return {name: values for name, values in state.items() if name not in delivered}
