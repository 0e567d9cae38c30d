"""From each rank's gradients to their sum over ranks, the same on every rank."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from functools import partial

import torch
from torch import Tensor, nn

from tightgrad.accumulate.buffer import zero_gradient
from tightgrad.core.types import Grads, Reduced, Slot, State, slots_with
from tightgrad.plan.plan import ResolvedCompress
from tightgrad.sync.fallback import Send

BUCKET_NBYTES = 32 * 2**20


def reduce_gradients(
    grads: Grads,
    compress: ResolvedCompress,
    state: State,
    send: Send,
    owned: frozenset[str] = frozenset(),
) -> Reduced:
    """Run feedback and reducer, bucket by bucket. Collective: every rank must call it with the same names.

    Args:
        grads: this rank's gradients, scaled so that their sum over ranks is the target.
        compress: codec, reducer, feedback.
        state: what feedback and reducer remember.
        send: how compensated gradients are sent. The `failures` of its context say what could not be decoded, and must
            be looked at on all ranks (`same_sum.py`) before the totals are used.
        owned: names of gradients whose memory nobody else has or needs: feedback may overwrite and keep it. The others
            are cloned for it.

    Returns:
        Totals, what this rank transmitted (empty, since nothing downstream asks for it), and the new state.
    """
    total: Grads = {}
    new_state: State = state
    for bucket in buckets(grads, BUCKET_NBYTES):
        values = bucket if compress.reducer.leaves_nothing else {name: grad.float() for name, grad in bucket.items()}
        inner = partial(send, state=new_state)
        if compress.feedback is None:
            reduced = inner(values)
        else:
            given = {n: v.clone() if v is bucket[n] and n not in owned else v for n, v in values.items()}
            reduced = compress.feedback.reduce_(given, new_state, inner)
        total.update(reduced.total)
        new_state = merge(new_state, reduced.state)
    return Reduced(total, {}, new_state)


def completed(grads: Grads, used: Set[str], parameters: Mapping[str, nn.Parameter]) -> Grads:
    """Return the gradients of parameters that are `used`, zeros where this rank has none, and no others."""
    if used == grads.keys():
        return grads
    return {
        name: grads[name] if name in grads else zero_gradient(parameter)
        for name, parameter in parameters.items()
        if name in used
    }


def in_layout(total: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `total` in this dtype and in the memory order of `like`, which optimizers and clippers expect."""
    is_alike = total.dtype is dtype and total.stride() == like.stride()
    return total if is_alike else torch.empty_like(like, dtype=dtype).copy_(total)


def owns_storage(grads: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of tensors that fill their storages, which no other one of them shares."""
    storages = {name: grad.untyped_storage() for name, grad in grads.items()}
    sharers = Counter(storage.data_ptr() for storage in storages.values())
    return frozenset(
        name
        for name, storage in storages.items()
        if sharers[storage.data_ptr()] == 1 and storage.nbytes() == grads[name].numel() * grads[name].element_size()
    )


def buckets(grads: Mapping[str, Tensor], nbytes: int) -> Iterator[Grads]:
    """Group tensors, in order, into buckets of at most `nbytes` (or one tensor)."""
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
    """Replace tensors by the update's tensors of the same name, slot by slot."""
    return {slot: {**state.get(slot, {}), **update.get(slot, {})} for slot in {**state, **update}}


def without_nonfinite(state: State, before: State, total: Grads, slots: Mapping[str, Slot]) -> State:
    """Return `state`, but as `before` wherever `total`, the same on every rank, is inf or NaN: one of them would never
    leave a residual, and ranks would no longer agree on what they sent.
    """
    result: dict[str, dict[str, Tensor]] = {slot: dict(values) for slot, values in state.items()}
    for name, grad in total.items():
        good = torch.isfinite(grad)
        if bool(good.all()):
            continue
        for key, values in result.items():
            if name not in values or key not in slots:
                continue
            old = before.get(key, {}).get(name)
            if slots[key].like_parameter:
                values[name] = _mixed(slots[key], good, values[name], old)
            elif old is not None:
                values[name] = old
            else:
                del values[name]
    return result


def _mixed(slot: Slot, good: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    flat = slot.values(new).view(-1)
    kept = torch.zeros_like(flat) if old is None else slot.values(old).view(-1)
    # An 8-bit block with one inf has an infinite scale: of its other entries, which were sent, nothing is left.
    mixed = torch.where(good.reshape(-1), flat.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), kept)
    return slot.hold(mixed.view(good.shape))


def residual_norm(state: State, slots: Mapping[str, Slot]) -> float | None:
    """Return the 2-norm of what this rank has not sent yet; None where nothing is kept."""
    norms = [norm for slot in slots_with("residual", slots) if (norm := state_norm(state, slot)) is not None]
    return math.hypot(*norms) if norms else None


def state_norm(state: State, slot: Slot) -> float | None:
    """Return the 2-norm over all tensors of a slot, in whatever order; None if there is no such slot."""
    if slot.name not in state:
        return None
    norms = [torch.linalg.vector_norm(slot.values(held)) for _, held in sorted(state[slot.name].items())]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
