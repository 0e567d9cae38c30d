"""QSGD: q_i = ||x|| sign(x_i) l_i / s over each block, where l_i is one of the two integers next to s |x_i| / ||x||,
drawn so that E q = x.

    Alistarh et al. 2017, QSGD, arXiv:1610.02132.

`coding="packed"` takes log2(2 s + 1) bits an element, rounded up. `coding="elias"` is the paper's sparse code: for each
non-zero element the distance from the one before, the sign and the level, the integers in an Elias code. Its size
depends on the data, and it is small where few levels leave few elements non-zero.

Departs from the paper: Elias gamma instead of omega (the numbers are small); positions count through the whole tensor.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.blockwise import BlockCodec, largest_sizes, per_block, small_integers
from tightgrad.codecs.bits.entropy import pack_gamma, unpack_gamma
from tightgrad.codecs.bits.packing import pack_bits, packed_nbytes, unpack_bits
from tightgrad.codecs.bits.pieces import uniform
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_integer
from tightgrad.core.errors import PayloadError
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors

CODINGS = ("packed", "elias")
NORMS = ("l2", "max")
_COUNT_NBYTES = 8
_DENSE = -1


@dataclass(frozen=True)
class QSGD(BlockCodec):
    """Rounds each element at random to one of a few levels of its block's norm, without bias.

    Args:
        levels: s, 1 to 127; 1 gives -1, 0, 1, and 7 fits 4 bits.
        block_size: elements that share a norm (the paper's bucket), at least 8.
        norm: "l2" (the paper's analysis) or "max" (its experiments; a smaller error, less sparse).
        coding: "packed" or "elias".

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.QSGD(levels=4)
        >>> x = torch.tensor([3.0, 0.0, -4.0, 0.0])
        >>> payload = codec.encode(x, GradSpec.of("weight", x), torch.Generator().manual_seed(0))
        >>> payload.nbytes, codec.decode(payload).tolist()
        (6, [2.5, 0.0, -3.75, 0.0])
    """

    levels: int = 7
    block_size: int = 512
    norm: str = "l2"
    coding: str = "packed"

    card: ClassVar[MethodCard] = MethodCard(
        id="qsgd",
        kind="codec",
        summary="stochastic levels of each block's norm, packed or entropy-coded",
        scope="block",
        unbiased=True,
        reducer="two_shot",
        reference="Alistarh et al. 2017, arXiv:1610.02132",
        use_when="there is no memory for error feedback",
        avoid_when="there is memory for error feedback; rounding to nearest then errs less than a few unbiased levels",
    )

    def __post_init__(self) -> None:
        check_integer("levels", self.levels, low=1, high=127)
        check_integer("block_size", self.block_size, low=8)
        check_choice("norm", self.norm, NORMS)
        check_choice("coding", self.coding, CODINGS)

    @property
    def fixed_size(self) -> bool:
        """Tell whether payloads have a known size; those of packed bits do."""
        return self.coding == "packed"

    @property
    def reducer(self) -> str:
        """Return the id of the usual reducer: gather for payloads of unknown size."""
        return "two_shot" if self.fixed_size else "gather"

    @property
    def code_bits(self) -> int:
        """Return the number of bits for 2 s + 1 integers."""
        return (2 * self.levels).bit_length()

    def encode_blocks(self, blocks: Tensor, scratch: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a level next to each element; codes are signed levels plus s."""
        scales = largest_sizes(blocks, scratch)
        if self.norm == "l2":
            # Over the largest first, so that no square overflows; more than float32 holds is less than the norm.
            ratio = torch.linalg.vector_norm(per_block(blocks, scales, scratch), dim=1)
            scales = (scales * ratio).clamp_(max=torch.finfo(torch.float32).max)
        scaled = per_block(blocks, scales, scratch).mul_(self.levels)
        scaled.add_(uniform(scaled.numel(), generator, blocks.device).view(scaled.shape)).floor_()
        return small_integers(scaled.clamp_(-self.levels, self.levels)).add_(self.levels), scales

    def decode_blocks_(self, out: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Multiply levels by the norm over s."""
        out.copy_(codes).sub_(self.levels).mul_(scales.div(self.levels)[:, None])

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout: integers and norms ("packed"), or one tensor of a number of non-zeros, norms, signs and an
        entropy code ("elias").
        """
        return super().layout(spec) if self.fixed_size else (TensorLayout(torch.uint8, None),)

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Draw the levels, then pack them."""
        if self.fixed_size:
            return super().encode(flat, spec, generator)
        scales = torch.empty(self.num_blocks(spec.numel), dtype=torch.float32, device=flat.device)
        scratch = self._scratch(spec.numel, flat.device)
        parts = [
            self.encode_piece(flat[start:stop], scales[start // self.block_size :], scratch, generator)
            for start, stop in self._pieces(spec.numel, flat.device)
        ]
        integers = torch.cat(parts).to(torch.int64) - self.levels if parts else flat.to(torch.int64)
        where = integers.nonzero().view(-1)
        kept = integers[where]
        distances = torch.diff(where, prepend=where.new_tensor([-1]))
        message = torch.cat(
            [
                _count_bytes(kept.numel(), flat.device),
                scales.view(torch.uint8),
                pack_bits(kept < 0, 1),
                pack_gamma(torch.cat([distances, kept.abs()])),
            ]
        )
        if message.numel() >= spec.dense_nbytes + _COUNT_NBYTES:
            message = torch.cat([_count_bytes(_DENSE, flat.device), flat.contiguous().view(torch.uint8)])
        return Payload((message,), spec)

    def decode(self, payload: Payload) -> Tensor:
        """Multiply the levels by the norms."""
        return super().decode(payload) if self.fixed_size else self._decode_elias(payload)

    def decode_to_(self, out: Tensor, payload: Payload) -> None:
        """Multiply the levels by the norms, and write to `out`."""
        if self.fixed_size:
            super().decode_to_(out, payload)
        else:
            out.copy_(self._decode_elias(payload))

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add levels times norms to `total`."""
        if self.fixed_size:
            super().add_to_(total, payload)
        else:
            total.add_(self._decode_elias(payload))

    def _decode_elias(self, payload: Payload) -> Tensor:
        (message,) = checked_tensors(self, payload)
        numel = payload.spec.numel
        count = int(message[:_COUNT_NBYTES].clone().view(torch.int64)) if message.numel() >= _COUNT_NBYTES else -2
        body = message[_COUNT_NBYTES:].clone()
        if count == _DENSE and body.numel() == payload.spec.dense_nbytes:
            return body.view(payload.spec.dtype)
        scale_nbytes, sign_nbytes = 4 * self.num_blocks(numel), packed_nbytes(count, 1)
        if not 0 <= count <= numel or body.numel() < scale_nbytes + sign_nbytes:
            raise PayloadError(
                f"a payload of qsgd for {payload.spec.name!r} ({numel} elements) says {count} non-zeros in "
                f"{message.numel()} bytes; it is damaged."
            )
        scales = body[:scale_nbytes].view(torch.float32)
        negative = unpack_bits(body[scale_nbytes : scale_nbytes + sign_nbytes], count, 1).to(torch.bool)
        integers = unpack_gamma(body[scale_nbytes + sign_nbytes :], 2 * count)
        distances, sizes = integers[:count], integers[count:]
        where = torch.cumsum(distances, dim=0) - 1
        if count and (int(where.max()) >= numel or int(distances.max()) > numel or int(sizes.max()) > self.levels):
            raise PayloadError(
                f"a payload of qsgd for {payload.spec.name!r} has positions up to {int(where.max())} and levels up to "
                f"{int(sizes.max())}, expected below {numel} and at most {self.levels}; it is damaged."
            )
        out = torch.zeros(numel, dtype=torch.float32, device=message.device)
        values = torch.where(negative, -sizes, sizes).to(torch.float32)
        out[where] = values * scales.div(self.levels)[where // self.block_size]
        return out.to(payload.spec.dtype)


def _count_bytes(count: int, device: torch.device) -> Tensor:
    return torch.tensor([count], dtype=torch.int64, device=device).view(torch.uint8)
