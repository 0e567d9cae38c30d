"""A number for the bits of a tensor, by which ranks find out whether they hold the same one."""

import torch
from torch import Tensor

from tightgrad.clip.dtensor import stored

_PIECE = 1 << 20
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTOR = -7046029254386353131  # odd, from the golden ratio, as a signed 64-bit number


def fingerprint(tensor: Tensor) -> Tensor:
    """Return a scalar int64 that depends on every bit of this rank's part of a tensor, and on where it is."""
    held = stored(tensor.detach())
    flat = (torch.view_as_real(held.resolve_conj()) if held.is_complex() else held).contiguous().view(-1)
    bits = flat.view(_BITS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, bits.numel(), _PIECE):
        piece = bits[start : start + _PIECE].to(torch.int64)
        place = torch.arange(start, start + piece.numel(), device=flat.device)
        mixed = (piece + place * _FACTOR) * _FACTOR
        mixed = (mixed ^ (mixed >> 29)) * _FACTOR
        total += mixed.sum()
    return total
