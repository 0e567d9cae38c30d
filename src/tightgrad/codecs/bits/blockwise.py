"""Base class of codecs that send one float32 scale for each block of elements, and a small integer for each element."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.packing import pack_bits, packed_nbytes, unpack_bits
from tightgrad.codecs.bits.pieces import pieces
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors


class BlockCodec(Codec):
    """Sends packed integers, then one float32 scale a block. Subclasses turn a block into integers and a scale."""

    block_size: int
    packed_together: ClassVar[int] = 8
    """Integers that fill whole bytes."""

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Return the number of bits of one integer."""

    @abstractmethod
    def encode_blocks(self, blocks: Tensor, scratch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Turn blocks (m, b) into integers, uint8 (m, b), and scales, float32 (m,). `blocks` is left as it is.

        `scratch` (m, b) may be overwritten; it is memory that is already in the cache.
        """

    @abstractmethod
    def decode_blocks_(self, out: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Fill `out` (m, b) from integers, uint8 (m, b), and scales (m,)."""

    def code_nbytes(self, numel: int) -> int:
        """Return the bytes of `numel` packed integers."""
        return packed_nbytes(numel, self.code_bits)

    def pack(self, codes: Tensor) -> Tensor:
        """Pack uint8 integers (n,) into bytes, uint8."""
        return pack_bits(codes, self.code_bits)

    def unpack(self, packed: Tensor, numel: int) -> Tensor:
        """Unpack `numel` integers, uint8 (numel,), from bytes."""
        return unpack_bits(packed, numel, self.code_bits).to(torch.uint8)

    @property
    def granularity(self) -> int:
        """Return the block size, since chunks must be whole blocks."""
        return self.block_size

    def num_blocks(self, numel: int) -> int:
        """Return the number of blocks of `numel` elements; the last block may be shorter."""
        return -(-numel // self.block_size)

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout: packed integers, then one float32 a block."""
        return (
            TensorLayout(torch.uint8, self.code_nbytes(spec.numel)),
            TensorLayout(torch.float32, self.num_blocks(spec.numel)),
        )

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Scale each block and round its elements to integers."""
        packed = torch.empty(self.code_nbytes(spec.numel), dtype=torch.uint8, device=flat.device)
        scales = torch.empty(self.num_blocks(spec.numel), dtype=torch.float32, device=flat.device)
        scratch = self._scratch(spec.numel, flat.device)
        for start, stop in self._pieces(spec.numel, flat.device):
            codes = self.encode_piece(flat[start:stop], scales[start // self.block_size :], scratch, generator)
            packed[self.code_nbytes(start) : self.code_nbytes(stop)] = self.pack(codes)
        return Payload((packed, scales), spec)

    def encode_piece(self, flat: Tensor, scales: Tensor, scratch: Tensor, generator: torch.Generator) -> Tensor:
        """Encode whole blocks and then the shorter last one; fill the first of `scales`; return uint8 integers."""
        whole = flat.numel() // self.block_size
        edge = whole * self.block_size
        parts = []
        for blocks, out in (
            (flat[:edge].view(whole, self.block_size), scales[:whole]),
            (flat[edge:].view(1, -1), scales[whole : whole + 1]),
        ):
            if blocks.numel():
                memory = scratch[: blocks.numel()].view(blocks.shape)
                codes, found = self.encode_blocks(blocks, memory, generator)
                out.copy_(found)
                parts.append(codes.view(-1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def decode(self, payload: Payload) -> Tensor:
        """Return the integers times their block's scale."""
        checked_tensors(self, payload)
        out = torch.empty(payload.spec.numel, dtype=torch.float32, device=payload.spec.device)
        self.decode_to_(out, payload)
        return out.to(payload.spec.dtype)

    def decode_to_(self, out: Tensor, payload: Payload) -> None:
        """Write the integers times their block's scale to `out`."""
        packed, scales = checked_tensors(self, payload)
        for start, stop in self._pieces(payload.spec.numel, out.device):
            codes = self.unpack(packed[self.code_nbytes(start) : self.code_nbytes(stop)], stop - start)
            self.decode_piece_(out[start:stop], codes, scales[start // self.block_size :])

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add the decoded payload to `total`, piece by piece."""
        packed, scales = checked_tensors(self, payload)
        scratch = self._scratch(payload.spec.numel, total.device)
        for start, stop in self._pieces(payload.spec.numel, total.device):
            codes = self.unpack(packed[self.code_nbytes(start) : self.code_nbytes(stop)], stop - start)
            piece = scratch[: stop - start]
            self.decode_piece_(piece, codes, scales[start // self.block_size :])
            total[start:stop].add_(piece)

    def decode_piece_(self, out: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Fill `out` with whole blocks and then the shorter last one."""
        whole = out.numel() // self.block_size
        edge = whole * self.block_size
        if whole:
            shape = (whole, self.block_size)
            self.decode_blocks_(out[:edge].view(shape), codes[:edge].view(shape), scales[:whole])
        if edge < out.numel():
            last = scales[whole : whole + 1]
            self.decode_blocks_(out[edge:].view(1, -1), codes[edge:].view(1, -1), last)

    def _scratch(self, numel: int, device: torch.device) -> Tensor:
        """Memory of the longest piece."""
        numel_of_piece = max((stop - start for start, stop in self._pieces(numel, device)), default=0)
        return torch.empty(numel_of_piece, dtype=torch.float32, device=device)

    def _pieces(self, numel: int, device: torch.device) -> Iterator[tuple[int, int]]:
        return pieces(numel, math.lcm(self.block_size, self.packed_together), device)


def largest_sizes(blocks: Tensor, scratch: Tensor) -> Tensor:
    """Return the largest |x| of each block: (m,)."""
    return torch.abs(blocks, out=scratch).amax(dim=1)


def per_block(blocks: Tensor, scales: Tensor, scratch: Tensor) -> Tensor:
    """Divide blocks by their scales, in `scratch`; a block whose scale is zero gives zeros."""
    return torch.div(blocks, torch.where(scales > 0, scales, torch.inf)[:, None], out=scratch)


def may_be_inexact(scales: Tensor) -> bool:
    """Tell whether a scale is so small that it has lost digits, so that quotients by it may be too large."""
    if scales.device.type != "cpu":
        return True  # a look would wait for the device
    return bool((scales < torch.finfo(torch.float32).tiny).any())


def small_integers(values: Tensor) -> Tensor:
    """Convert float32 integers in [-127, 127] to signed bytes in uint8; torch converts to int8 five times faster."""
    return values.to(torch.int8).view(torch.uint8)
