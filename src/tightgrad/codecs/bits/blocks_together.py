"""Several tensors are encoded at once, as the blocks of one tensor; short last blocks are padded with zeros.

Bytes and values are the same as for one tensor after the other. It saves operations, since a small tensor needs as
many as a large one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tightgrad.codecs.bits.blockwise import BlockCodec
from tightgrad.codecs.bits.pieces import PIECE_NUMEL, are_short
from tightgrad.codecs.bits.together import Together
from tightgrad.core.types import GradSpec, Payload
from tightgrad.core.wire import check_message

SCALE_NBYTES = 4


class BlocksTogether(Together, BlockCodec):
    """Encodes short tensors together, for codecs whose blocks may be padded with zeros without changing the other
    values.
    """

    def payload_nbytes(self, spec: GradSpec) -> int:
        """Return the bytes of the packed integers and of the scales."""
        return self.code_nbytes(spec.numel) + SCALE_NBYTES * self.num_blocks(spec.numel)

    def goes_together(self, specs: Sequence[GradSpec]) -> bool:
        """Tell whether tensors are short, nothing is drawn, and blocks fill whole bytes."""
        fills_bytes = self.block_size * self.code_bits % 8 == 0
        return are_short(specs) and not self.unbiased and fills_bytes

    def encode_together(self, flats: Sequence[Tensor], specs: Sequence[GradSpec]) -> Tensor:
        """Encode short tensors as the blocks of one tensor."""
        parts: list[Tensor] = []
        for start, stop in _groups(self, specs):
            parts += _encode_group(self, flats[start:stop])
        return torch.cat(parts)

    def decode_together(self, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor]:
        """Decode short tensors as the blocks of one tensor."""
        parts = _cut(self, message, specs)
        decoded: list[Tensor] = []
        for start, stop in _groups(self, specs):
            codes, scales = parts[2 * start : 2 * stop : 2], parts[2 * start + 1 : 2 * stop : 2]
            decoded += _decode_group(self, codes, scales, specs[start:stop])
        return decoded


def _cut(codec: BlockCodec, message: Tensor, specs: Sequence[GradSpec]) -> Sequence[Tensor]:
    """Integers and scales of each tensor, in turn, as bytes."""
    sizes = [
        size for spec in specs for size in (codec.code_nbytes(spec.numel), SCALE_NBYTES * codec.num_blocks(spec.numel))
    ]
    check_message(codec, message, sum(sizes))
    parts: tuple[Tensor, ...] = message.split(sizes)
    return parts


def _groups(codec: BlockCodec, specs: Sequence[GradSpec]) -> Iterator[tuple[int, int]]:
    """(start, stop) of neighbours that fit into the cache together; a long tensor is alone."""
    if specs[0].device.type != "cpu":
        yield 0, len(specs)
        return
    start = numel = 0
    for place, spec in enumerate(specs):
        padded = codec.block_size * codec.num_blocks(spec.numel)
        if place > start and numel + padded > PIECE_NUMEL:
            yield start, place
            start, numel = place, 0
        numel += padded
    yield start, len(specs)


def _with_gaps(sizes: Sequence[int], multiple: int) -> list[int]:
    """Each size, and what is missing to a multiple."""
    return [part for size in sizes for part in (size, -size % multiple)]


def _encode_group(codec: BlockCodec, flats: Sequence[Tensor]) -> list[Tensor]:
    numels = [flat.numel() for flat in flats]
    device = flats[0].device
    if len(flats) == 1:
        payload = codec.encode(flats[0], GradSpec("", (numels[0],), numels[0], device=device), torch.Generator(device))
        return [tensor.view(torch.uint8) for tensor in payload.tensors]
    gaps = _with_gaps(numels, codec.block_size)
    values = torch.zeros(sum(gaps), dtype=torch.float32, device=device)
    torch._foreach_copy_(values.split(gaps)[::2], list(flats))
    blocks = values.view(-1, codec.block_size)
    codes, scales = codec.encode_blocks(blocks, torch.empty_like(blocks), torch.Generator(device))
    codes = codes.view(-1)
    torch._foreach_zero_(codes.split(gaps)[1::2])
    packed = codec.pack(codes).split(_with_gaps([codec.code_nbytes(n) for n in numels], _block_nbytes(codec)))[::2]
    scale_bytes = scales.contiguous().view(torch.uint8).split([SCALE_NBYTES * codec.num_blocks(n) for n in numels])
    return [part for pair in zip(packed, scale_bytes, strict=True) for part in pair]


def _decode_group(
    codec: BlockCodec, packed: Sequence[Tensor], scale_bytes: Sequence[Tensor], specs: Sequence[GradSpec]
) -> list[Tensor]:
    scales = torch.cat(list(scale_bytes)).view(torch.float32)
    if len(specs) == 1:
        return [codec.decode(Payload((packed[0].clone(), scales), specs[0]))]
    gaps = _with_gaps([part.numel() for part in packed], _block_nbytes(codec))
    whole = torch.zeros(sum(gaps), dtype=torch.uint8, device=scales.device)
    torch._foreach_copy_(whole.split(gaps)[::2], list(packed))
    shape = (scales.numel(), codec.block_size)
    values = torch.empty(shape, dtype=torch.float32, device=scales.device)
    codec.decode_blocks_(values, codec.unpack(whole, values.numel()).view(shape), scales)
    pieces = values.view(-1).split(_with_gaps([spec.numel for spec in specs], codec.block_size))[::2]
    return [piece.to(spec.dtype) for piece, spec in zip(pieces, specs, strict=True)]


def _block_nbytes(codec: BlockCodec) -> int:
    return codec.block_size * codec.code_bits // 8
