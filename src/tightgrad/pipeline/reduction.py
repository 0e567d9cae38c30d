"""From each rank's gradients to their sum over ranks, the same on every rank."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from tightgrad.core.protocols import ReduceContext
from tightgrad.core.types import Grads, Reduced, Slot, State
from tightgrad.pipeline.plan import Compress

BUCKET_NBYTES = 32 * 2**20


def reduce_gradients(grads: Grads, compress: Compress, state: State, context: ReduceContext) -> Reduced:
    """Run feedback and reducer, bucket by bucket. Collective: every rank must call it with the same names.

    Args:
        grads: this rank's gradients, scaled so that their sum over ranks is the target.
        compress: codec, reducer, feedback.
        state: what feedback and reducer remember.
        context: network, random numbers, clock.

    Returns:
        Totals, what this rank transmitted (empty, since nothing downstream asks for it), and the new state.
    """
    assert compress.reducer is not None
    total: Grads = {}
    new_state: State = state
    for bucket in buckets(grads, BUCKET_NBYTES):
        values = {name: grad.float() for name, grad in bucket.items()} if compress.codec is not None else bucket
        inner = partial(compress.reducer.reduce, codec=compress.codec, state=new_state, context=context)
        reduced = compress.feedback.reduce(values, new_state, inner) if compress.feedback else inner(values)
        total.update(reduced.total)
        new_state = merge(new_state, reduced.state)
    return Reduced(total, {}, new_state)


def buckets(grads: Mapping[str, Tensor], nbytes: int) -> Iterator[Grads]:
    """Group tensors, in order, into lots of at most `nbytes` (or one tensor)."""
    bucket: Grads = {}
    filled = 0
    for name, grad in grads.items():
        size = grad.numel() * grad.element_size()
        if bucket and filled + size > nbytes:
            yield bucket
            bucket, filled = {}, 0
        bucket[name] = grad
        filled += size
    if bucket:
        yield bucket


def merge(state: State, update: State) -> State:
    """Slot by slot, the update's tensors replace those of the same name."""
    return {slot: {**state.get(slot, {}), **update.get(slot, {})} for slot in {**state, **update}}


def state_norm(state: State, slot: Slot) -> float | None:
    """2-norm over all tensors of a slot; None if there is no such slot."""
    if slot.name not in state:
        return None
    norms = [torch.linalg.vector_norm(slot.values(held)) for held in state[slot.name].values()]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
