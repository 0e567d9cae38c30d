"""Positive integers in Elias' gamma code, in plain torch, on any device.

    Elias 1975, Universal codeword sets and representations of the integers, IEEE Trans. Inf. Theory 21(2).

An integer v with N = floor(log2 v) takes N zeros, a one, and the N low bits of v. Here all unary parts come first and
all low bits after them: the same number of bits, and both sides know where each starts without reading one by one.
"""

import torch
from torch import Tensor

from tightgrad.codecs.bits.packing import pack_bits, packed_nbytes, unpack_bits
from tightgrad.core.errors import PayloadError

MOST_LOW_BITS = 40
"""No integer is 2^41 or more."""


def pack_gamma(values: Tensor) -> Tensor:
    """Pack positive int64 integers of shape (n,) into uint8."""
    low = _floor_log2(values)
    ends = torch.cumsum(low + 1, dim=0)
    unary = torch.zeros(int(ends[-1]) if values.numel() else 0, dtype=torch.uint8, device=values.device)
    unary[ends - 1] = 1
    owner, position = _low_bit_owners(low)
    bits = ((values[owner] >> position) & 1).to(torch.uint8)
    return torch.cat([pack_bits(unary, 1), pack_bits(bits, 1)])


def unpack_gamma(packed: Tensor, count: int) -> Tensor:
    """Undo `pack_gamma` for `count` integers: int64 of shape (count,).

    Raises:
        PayloadError: the bytes are not exactly `count` integers.
    """
    if count > packed.numel() * 8:
        raise PayloadError(f"{packed.numel()} bytes cannot hold {count} integers; the payload is damaged.")
    ones = unpack_bits(packed, packed.numel() * 8, 1).nonzero().view(-1)[:count]
    if ones.numel() < count:
        raise PayloadError(f"an entropy code holds {ones.numel()} integers, expected {count}; the payload is damaged.")
    low = torch.diff(ones, prepend=ones.new_tensor([-1])) - 1
    if count and int(low.max()) > MOST_LOW_BITS:
        raise PayloadError(f"an entropy code holds an integer of {int(low.max())} bits; the payload is damaged.")
    num_unary = packed_nbytes(int(ones[-1]) + 1, 1) if count else 0
    num_low = int(low.sum())
    if packed.numel() != num_unary + packed_nbytes(num_low, 1):
        raise PayloadError(
            f"an entropy code has {packed.numel()} bytes, expected {num_unary + packed_nbytes(num_low, 1)}; the "
            "payload is damaged."
        )
    owner, position = _low_bit_owners(low)
    bits = unpack_bits(packed[num_unary:], num_low, 1).to(torch.int64)
    return (torch.ones_like(low) << low).index_add_(0, owner, bits << position)


def _floor_log2(values: Tensor) -> Tensor:
    """Exact for integers from 1 to 2^52."""
    return torch.frexp(values.double()).exponent.to(torch.int64) - 1


def _low_bit_owners(low: Tensor) -> tuple[Tensor, Tensor]:
    """For each low bit, in order: whose it is, and its place value's exponent."""
    owner = torch.repeat_interleave(torch.arange(low.numel(), device=low.device), low)
    starts = torch.cumsum(low, dim=0) - low
    return owner, torch.arange(owner.numel(), device=low.device) - starts[owner]
