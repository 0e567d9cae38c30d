"""Packs many sparse tensors into one message and back, in as many torch operations as one tensor takes.

The message is bit for bit that of the tensors' payloads, one after the other; a model has many small tensors, and
calling torch for each would take most of a step. Only for values of `Cast`, or `IntBlock` rounding to nearest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tightgrad.codecs.bits.packing import high_numel, index_nbytes, low_bits, pack_bits, unpack_bits
from tightgrad.codecs.cast import Cast
from tightgrad.codecs.int_block import IntBlock
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec

MOST_ENTRIES = 2**18
"""Above, tensors are large, and calling torch for each costs little."""
KEPT_LAYOUTS = 32


@dataclass(frozen=True)
class MessageLayout:
    """Says where each entry's bits and bytes are in the message, over all tensors.

    Args:
        counts: number of entries of each tensor.
        nbytes: bytes of the message.
        high: for each entry, the bit of its unary part if its index were 0, shape (k,).
        bits: number of low bits of each entry's index, shape (k,).
        low: for each number of low bits, which entries have it (n,), and the bits' positions (n, bits).
        unary: 1 for the bits of unary parts, else 0, uint8 of shape (8 nbytes,).
        first_bits: for each entry, the first bit of its tensor's unary part, shape (k,).
        last_bits: for each entry, the last bit of its tensor's unary part, shape (k,).
        values: for each entry, the position of its value in units of its width, shape (k,).
        blocks: for each entry, its place among whole blocks of all tensors, shape (k,); empty for an element codec.
        scales: positions of the bytes of each block's scale, shape (m, 4).
        last: position of each tensor's last entry, shape (t,).
        numels: number of elements of each tensor, shape (t,).
    """

    counts: tuple[int, ...]
    nbytes: int
    high: Tensor
    bits: Tensor
    low: tuple[tuple[Tensor, Tensor], ...]
    unary: Tensor
    first_bits: Tensor
    last_bits: Tensor
    values: Tensor
    blocks: Tensor
    scales: Tensor
    last: Tensor
    numels: Tensor


def is_supported(values: Codec) -> bool:
    """Tell whether the values of all entries can be encoded together."""
    return isinstance(values, Cast) or (isinstance(values, IntBlock) and values.rounding == "nearest")


@lru_cache(maxsize=KEPT_LAYOUTS)
def message_layout(values: Codec, numels: tuple[int, ...], counts: tuple[int, ...]) -> MessageLayout:
    """Return the layout of tensors of `numels` elements, of which `counts` entries are kept (at least one each)."""
    low_starts, high_starts, value_starts, scale_starts = [], [], [], []
    start = 0
    for numel, kept in zip(numels, counts, strict=True):
        low_nbytes, high_nbytes = index_nbytes(numel, kept)
        low_starts.append(start)
        high_starts.append(start + low_nbytes)
        value_starts.append(start + low_nbytes + high_nbytes)
        code_nbytes, scale_nbytes = _value_nbytes(values, kept)
        scale_starts.append(value_starts[-1] + code_nbytes)
        start = scale_starts[-1] + scale_nbytes
    count = torch.tensor(counts, device="cpu")
    ends = count.cumsum(0)
    within = torch.arange(int(ends[-1]), device="cpu") - (ends - count).repeat_interleave(count)

    def spread(each: Sequence[int]) -> Tensor:
        return torch.tensor(each, device="cpu").repeat_interleave(count)

    each_bits = [low_bits(numel, kept) for numel, kept in zip(numels, counts, strict=True)]
    bits, low_start = spread(each_bits), spread(low_starts)
    low = []
    for width in sorted(set(each_bits) - {0}):
        chosen = (bits == width).nonzero().view(-1)
        first = 8 * low_start[chosen] + width * within[chosen]
        low.append((chosen, first[:, None] + torch.arange(width, device="cpu")))
    sizes = [high_numel(numel, kept) for numel, kept in zip(numels, counts, strict=True)]
    unary = torch.zeros(8 * start, dtype=torch.uint8, device="cpu")
    for first_byte, size in zip(high_starts, sizes, strict=True):
        unary[8 * first_byte : 8 * first_byte + size] = 1
    first_bits = 8 * spread(high_starts)
    blocks, scales = (
        torch.empty(0, dtype=torch.int64, device="cpu"),
        torch.empty((0, 4), dtype=torch.int64, device="cpu"),
    )
    if isinstance(values, IntBlock):
        num_blocks = torch.tensor([values.num_blocks(kept) for kept in counts], device="cpu")
        first_block = num_blocks.cumsum(0) - num_blocks
        blocks = values.block_size * first_block.repeat_interleave(count) + within
        place = torch.arange(int(num_blocks.sum()), device="cpu") - first_block.repeat_interleave(num_blocks)
        at = torch.tensor(scale_starts, device="cpu").repeat_interleave(num_blocks) + 4 * place
        scales = at[:, None] + torch.arange(4, device="cpu")
        positions = (8 // values.bits) * spread(value_starts) + within
    else:
        width = _itemsize(values)
        positions = spread(value_starts)[:, None] + width * within[:, None] + torch.arange(width, device="cpu")
    return MessageLayout(
        counts=counts,
        nbytes=start,
        high=first_bits + within,
        bits=bits,
        low=tuple(low),
        unary=unary,
        first_bits=first_bits,
        last_bits=first_bits + spread(sizes) - 1,
        values=positions,
        blocks=blocks,
        scales=scales,
        last=ends - 1,
        numels=torch.tensor(numels, device="cpu"),
    )


def pack_message(indices: Tensor, entries: Tensor, values: Codec, layout: MessageLayout) -> Tensor:
    """Pack indices within tensors, ascending, int64 (k,), and float32 entries (k,) into uint8 (layout.nbytes,)."""
    stream = torch.zeros(8 * layout.nbytes, dtype=torch.uint8, device="cpu")
    stream[layout.high + (indices >> layout.bits)] = 1
    for chosen, positions in layout.low:
        shifts = torch.arange(positions.shape[1], device="cpu")
        stream[positions] = ((indices[chosen, None] >> shifts) & 1).to(torch.uint8)
    message = pack_bits(stream, 1)
    if not isinstance(values, IntBlock):
        message[layout.values] = entries.to(_dtype(values))[:, None].view(torch.uint8)
        return message
    blocks = torch.zeros(layout.scales.shape[0], values.block_size, dtype=torch.float32, device="cpu")
    blocks.view(-1)[layout.blocks] = entries
    codes, scales = values.encode_blocks(blocks, torch.empty_like(blocks), torch.Generator())
    slots = torch.zeros(layout.nbytes * 8 // values.bits, dtype=torch.uint8, device="cpu")
    slots[layout.values] = codes.view(-1)[layout.blocks]
    message |= pack_bits(slots, values.bits)
    message[layout.scales] = scales[:, None].view(torch.uint8)
    return message


def unpack_message(message: Tensor, values: Codec, layout: MessageLayout) -> tuple[list[Tensor], list[Tensor]]:
    """Undo `pack_message`: indices and values of each tensor.

    Raises:
        PayloadError: the bytes are not such a message.
    """
    if message.numel() != layout.nbytes:
        raise PayloadError(f"a message has {message.numel()} bytes, expected {layout.nbytes}; it is damaged.")
    stream = unpack_bits(message, 8 * layout.nbytes, 1)
    indices = _unary(stream, layout)
    for chosen, positions in layout.low:
        shifts = torch.arange(positions.shape[1], device="cpu")
        indices[chosen] += (stream[positions].to(torch.int64) << shifts).sum(dim=1)
    _check_ascending(indices, layout)
    counts = list(layout.counts)
    if isinstance(values, IntBlock):
        slots = unpack_bits(message, layout.nbytes * 8 // values.bits, values.bits)
        scales = message[layout.scales].view(torch.float32).view(-1)
        entries = torch.empty(len(layout.values), 1, dtype=torch.float32, device="cpu")
        codes = slots[layout.values].view(-1, 1)
        values.decode_blocks_(entries, codes, scales[layout.blocks // values.block_size])
        return list(indices.split(counts)), list(entries.view(-1).split(counts))
    entries = message[layout.values].view(_dtype(values)).view(-1).float()
    return list(indices.split(counts)), list(entries.split(counts))


def _unary(stream: Tensor, layout: MessageLayout) -> Tensor:
    """High parts of all indices, shifted into place."""
    found = (stream & layout.unary).nonzero().view(-1)
    if found.numel() != len(layout.high):
        raise PayloadError(
            f"packed indices hold {found.numel()} entries, expected {len(layout.high)}; the message is damaged."
        )
    if bool(((found < layout.first_bits) | (found > layout.last_bits)).any()):
        raise PayloadError("packed indices of one tensor hold another number of entries; the message is damaged.")
    return (found - layout.high) << layout.bits


def _check_ascending(indices: Tensor, layout: MessageLayout) -> None:
    falls = indices[1:] <= indices[:-1]
    falls[layout.last[:-1]] = False  # from one tensor to the next
    if bool(falls.any()) or bool((indices[layout.last] >= layout.numels).any()):
        raise PayloadError("packed indices are not ascending and below their bounds; the message is damaged.")


def _value_nbytes(values: Codec, count: int) -> tuple[int, int]:
    """Bytes of the codes and of the scales of `count` values."""
    if isinstance(values, IntBlock):
        return values.code_nbytes(count), 4 * values.num_blocks(count)
    return _itemsize(values) * count, 0


def _dtype(values: Codec) -> torch.dtype:
    assert isinstance(values, Cast)
    return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[values.dtype]


def _itemsize(values: Codec) -> int:
    return _dtype(values).itemsize
