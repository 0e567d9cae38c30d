"""Bits and sorted indices into bytes, in plain torch, on any device.

Sorted indices are packed as Elias and Fano did (Elias 1974, Efficient storage and retrieval by content and address
of static files, J. ACM 21): k of n indices take k * l + k + n / 2^l bits with l = floor(log2(n / k)), that is
about 2 + log2(n / k) bits each, and the size is known before the data is.
"""

import torch
from torch import Tensor

from tightgrad.core.errors import PayloadError


def packed_nbytes(numel: int, bits: int) -> int:
    """Bytes of `numel` numbers of `bits` bits."""
    return -(-numel * bits // 8)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack integers in [0, 2^bits), 0 <= bits <= 62, of shape (n,) into uint8 of shape (ceil(n * bits / 8),)."""
    if bits in (1, 2, 4):
        return _pack_within_byte(values, bits)
    shifts = torch.arange(bits, device=values.device)
    stream = (values.to(torch.int64)[:, None] >> shifts[None, :]).bitwise_and_(1).to(torch.uint8).view(-1)
    return _pack_within_byte(stream, 1)


def unpack_bits(packed: Tensor, numel: int, bits: int) -> Tensor:
    """Undo `pack_bits`: uint8 for bits of 1, 2 or 4, else int64, of shape (numel,)."""
    if bits in (1, 2, 4):
        return _unpack_within_byte(packed, bits)[:numel]
    shifts = torch.arange(bits, device=packed.device)
    stream = _unpack_within_byte(packed, 1)[: numel * bits].view(numel, bits).to(torch.int64)
    return (stream << shifts[None, :]).sum(dim=1)


def low_bits(numel: int, count: int) -> int:
    """How many low bits of each of `count` sorted indices below `numel` are stored as they are."""
    return max(0, (numel // count).bit_length() - 1) if count else 0


def high_numel(numel: int, count: int) -> int:
    """Length in bits of the unary part of `pack_indices`."""
    return count + ((numel - 1) >> low_bits(numel, count)) + 1 if count else 0


def index_nbytes(numel: int, count: int) -> tuple[int, int]:
    """Bytes of the two tensors of `pack_indices`."""
    return packed_nbytes(count, low_bits(numel, count)), packed_nbytes(high_numel(numel, count), 1)


def pack_indices(indices: Tensor, numel: int) -> tuple[Tensor, Tensor]:
    """Pack distinct, ascending int64 indices in [0, numel), of shape (k,), into (low, high) uint8 tensors."""
    count = indices.numel()
    bits = low_bits(numel, count)
    stream = torch.zeros(high_numel(numel, count), dtype=torch.uint8, device=indices.device)
    stream[(indices >> bits) + torch.arange(count, device=indices.device)] = 1
    return pack_bits(indices & ((1 << bits) - 1), bits), _pack_within_byte(stream, 1)


def unpack_indices(low: Tensor, high: Tensor, numel: int, count: int) -> Tensor:
    """Undo `pack_indices`: int64 of shape (count,), ascending, in [0, numel).

    Raises:
        PayloadError: the bytes are not `count` ascending indices below `numel`.
    """
    bits = low_bits(numel, count)
    positions = _unpack_within_byte(high, 1)[: high_numel(numel, count)].nonzero().view(-1)
    if positions.numel() != count:
        raise PayloadError(
            f"packed indices hold {positions.numel()} entries, expected {count}; the payload is damaged."
        )
    upper = positions - torch.arange(count, device=high.device)
    indices = (upper << bits) + unpack_bits(low, count, bits)
    if count and (bool((indices[1:] <= indices[:-1]).any()) or int(indices[-1]) >= numel):
        raise PayloadError(f"packed indices are not ascending and below {numel}; the payload is damaged.")
    return indices


def _pack_within_byte(values: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -values.numel() % per_byte)).view(-1, per_byte)
    packed = padded[:, 0].clone()
    for position in range(1, per_byte):
        packed |= padded[:, position] << (position * bits)
    return packed


def _unpack_within_byte(packed: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    mask = (1 << bits) - 1
    return torch.stack([(packed >> (position * bits)) & mask for position in range(per_byte)], dim=1).view(-1)
