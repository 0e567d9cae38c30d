"""The norms of the last steps, on the device, in memory that does not grow."""

from dataclasses import replace

import torch
from torch import Tensor

from tightgrad.core.types import MODEL, Slot, State


def history_slots(prefix: str, history: int) -> tuple[Slot, Slot]:
    """Return the slots of the last `history` norms, and of how many there have been."""
    # In the norm's own dtype, float64. An earlier version's float32 is read as well.
    norms = Slot(f"{prefix}_norms", across_ranks="equal", of_model=True)
    count = Slot(f"{prefix}_count", across_ranks="equal", of_model=True, shape=(), dtype=torch.int64)
    return replace(norms, shape=(history,)), count


def with_norm(slots: tuple[Slot, Slot], state: State, norm: Tensor) -> State:
    """Return what is remembered once `norm` has been added, in place of the oldest; only if it is finite.

    Args:
        slots: from `history_slots`.
        state: with the history so far, or without one.
        norm: scalar.
    """
    norms, count = _held(slots, state, norm)
    place = torch.arange(norms.numel(), device=norm.device) == count % norms.numel()
    finite = norm.isfinite()
    norms = torch.where(place & finite, norm, norms.to(norm.dtype))
    return {slots[0].name: {MODEL: norms}, slots[1].name: {MODEL: count + finite}}


def known_norms(slots: tuple[Slot, Slot], state: State) -> Tensor:
    """Return the norms that are remembered, in no order: one dimension, empty at first."""
    norms = state.get(slots[0].name, {}).get(MODEL)
    return torch.zeros(0, dtype=torch.float64, device="cpu") if norms is None else norms[~norms.isnan()]


def _held(slots: tuple[Slot, Slot], state: State, norm: Tensor) -> tuple[Tensor, Tensor]:
    norms, count = (state.get(slot.name, {}).get(MODEL) for slot in slots)
    if norms is None or count is None:
        norms = torch.full(slots[0].shape or (), torch.nan, dtype=norm.dtype, device=norm.device)
        count = torch.zeros((), dtype=torch.int64, device=norm.device)
    return norms, count
