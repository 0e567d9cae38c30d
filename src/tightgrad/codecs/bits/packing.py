"""Bits and sorted indices into bytes, in plain torch, on any device.

Sorted indices are packed as Elias and Fano did (Elias 1974, Efficient storage and retrieval by content and address
of static files, J. ACM 21): k of n indices take k * l + k + n / 2^l bits with l = floor(log2(n / k)), that is
about 2 + log2(n / k) bits each, and the size is known before the data is.
"""

import torch
from torch import Tensor

from tightgrad.core.errors import PayloadError


def packed_nbytes(numel: int, bits: int) -> int:
    """Return the bytes of `numel` numbers of `bits` bits."""
    return -(-numel * bits // 8)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack integers in [0, 2^bits), 0 <= bits <= 62, of shape (n,) into uint8 of shape (ceil(n * bits / 8),)."""
    if bits == 8:
        return values.to(torch.uint8)
    if bits in (1, 2, 4):
        return _pack_within_byte(values, bits)
    shifts = torch.arange(bits, device=values.device)
    pieces = values.split(_PIECE_NUMEL)
    streams = [((piece.to(torch.int64)[:, None] >> shifts) & 1).to(torch.uint8).view(-1) for piece in pieces]
    return torch.cat([_pack_within_byte(stream, 1) for stream in streams])


def unpack_bits(packed: Tensor, numel: int, bits: int) -> Tensor:
    """Undo `pack_bits`: uint8 for bits of 1, 2, 4 or 8, else int64, of shape (numel,)."""
    if bits == 8:
        return packed[:numel]
    if bits in (1, 2, 4):
        return _unpack_within_byte(packed, bits)[:numel]
    shifts = torch.arange(bits, device=packed.device)
    pieces = []
    for start in range(0, max(numel, 1), _PIECE_NUMEL):
        count = min(_PIECE_NUMEL, numel - start)
        piece = packed[start * bits // 8 : packed_nbytes(start + count, bits)]
        stream = _unpack_within_byte(piece, 1)[: count * bits].view(count, bits).to(torch.int64)
        pieces.append((stream << shifts).sum(dim=1))
    return torch.cat(pieces)


def pack_base3(values: Tensor) -> Tensor:
    """Pack integers in [0, 3) of shape (n,) into uint8 of shape (ceil(n / 5),): 1.6 bits each."""
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, -values.numel() % 5)).view(-1, 5)
    packed = padded[:, 4].clone()
    for position in (3, 2, 1, 0):
        packed.mul_(3).add_(padded[:, position])
    return packed


def unpack_base3(packed: Tensor, numel: int) -> Tensor:
    """Undo `pack_base3`: uint8 of shape (numel,).

    Raises:
        PayloadError: a byte is not five digits.
    """
    if packed.numel() and int(packed.max()) >= 3**5:
        raise PayloadError(f"a byte of {int(packed.max())} is not five digits of base 3; the payload is damaged.")
    numbers = torch.arange(3**5, device=packed.device)
    digits = torch.stack([numbers // 3**position % 3 for position in range(5)], dim=1).to(torch.uint8)
    return digits[packed.to(torch.int32)].view(-1)[:numel]


def low_bits(numel: int, count: int) -> int:
    """Return how many low bits of each of `count` sorted indices below `numel` are stored as they are."""
    return max(0, (numel // count).bit_length() - 1) if count else 0


def high_numel(numel: int, count: int) -> int:
    """Return the length in bits of the unary part of `pack_indices`."""
    return count + ((numel - 1) >> low_bits(numel, count)) + 1 if count else 0


def index_nbytes(numel: int, count: int) -> tuple[int, int]:
    """Return the bytes of the two tensors of `pack_indices`."""
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


# The values of one byte lie side by side in one wide integer, where a few shifts move all of them at once.
_WIDE = {1: torch.int64, 2: torch.int32, 4: torch.int16}
_GATHER_BITS = 0x0102040810204080  # brings bit 8 i of an int64 to bit 56 + i
_EVERY_BYTE = 0x0101010101010101
_DIAGONAL = 0x8040201008040201 - 2**64  # bit i of byte i, as a signed number
_PIECE_NUMEL = 2**16  # a multiple of 8, so that pieces end with whole bytes


def _pack_within_byte(values: Tensor, bits: int) -> Tensor:
    values = values.to(torch.uint8)
    if values.numel() % (8 // bits) or values.storage_offset():
        values = torch.nn.functional.pad(values, (0, -values.numel() % (8 // bits)))
    wide = values.view(_WIDE[bits])
    if bits == 4:
        wide = wide | (wide >> 4)
    elif bits == 2:
        wide = wide | (wide >> 6) | (wide >> 12) | (wide >> 18)
    else:
        wide = (wide * _GATHER_BITS) >> 56
    return wide.to(torch.uint8)


def _unpack_within_byte(packed: Tensor, bits: int) -> Tensor:
    wide = packed.to(_WIDE[bits])
    if bits == 4:
        wide = (wide | (wide << 4)) & 0x0F0F
    elif bits == 2:
        wide = (wide | (wide << 6) | (wide << 12) | (wide << 18)) & 0x03030303
    else:
        wide = (wide * _EVERY_BYTE) & _DIAGONAL
        wide = ((wide + 0x7F * _EVERY_BYTE) >> 7) & _EVERY_BYTE
    return wide.view(torch.uint8)
