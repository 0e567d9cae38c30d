"""All residuals, delivered densely in one step: before the plan, the wrapper or the number of ranks changes, or at the
end of training.
"""

from collections.abc import Mapping, Sequence

import torch

from tightgrad.adapters.plain import Adapter
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Collective, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, Slot, State, slots_with
from tightgrad.plan.guard import vote
from tightgrad.reducers import Dense


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


def held_residuals(state: State, slots: Sequence[Slot], adapter: Adapter) -> Grads:
    """Return what this rank has not sent yet, all slots together, in the shapes that are remembered."""
    held: Grads = {}
    for slot in slots:
        for name, tensor in state.get(slot.name, {}).items():
            values = slot.values(tensor).view(_shape(name, adapter))
            held[name] = held[name] + values if name in held else values
    return held


def without_residuals(state: State, slots: Sequence[Slot]) -> State:
    """Return the state after they were delivered."""
    delivered = {slot.name for slot in slots}
    return {name: values for name, values in state.items() if name not in delivered}


def on_every_rank(residuals: Grads, adapter: Adapter) -> Grads:
    """Return residuals of the same parameters on every rank: zeros where only others have one. Collective."""
    device = next(iter(adapter.parameters.values())).device
    voted = vote(residuals, list(adapter.parameters), finite=True, collective=adapter.collective).used
    return {
        name: residuals[name].contiguous()
        if name in residuals
        else torch.zeros(_shape(name, adapter), dtype=torch.float32, device=device)
        for name in adapter.parameters
        if name in voted
    }


def densely_summed(grads: Grads, collective: Collective, clock: StageClock) -> Grads:
    """Return float32 sums over ranks. Collective: every rank must call it."""
    return Dense().reduce(grads, None, {}, without_chance(collective, clock)).total


def without_chance(collective: Collective, clock: StageClock) -> ReduceContext:
    """Return what a reducer that draws no random numbers may use."""
    return ReduceContext(collective, StepRng(0, 0, collective.rank), clock)


def _shape(name: str, adapter: Adapter) -> tuple[int, ...]:
    return tuple(
        adapter.parameters[name].shape if adapter.remembered_shapes is None else adapter.remembered_shapes[name]
    )
