"""The largest cosine coefficients of each block: C(x) = D' T(D x), D the orthonormal DCT-II of each block and T the
`count_per_block` coefficients of largest size.

    Peng et al. 2024, Decoupled Momentum Optimization, arXiv:2411.19870.

Departs from the paper: blocks of consecutive elements instead of squares of a matrix, since flat buffers have no
matrices; the momentum part of its optimizer is what error feedback and momentum correction do here.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.pieces import pieces
from tightgrad.codecs.cast import Cast
from tightgrad.codecs.chunked_topk import ChunkedTopK
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors


@dataclass(frozen=True)
class DCTTopK(Codec):
    """Keeps the largest cosine coefficients of each block, and sends their packed indices and values.

    Args:
        block_size: elements that are transformed together, 2 to 4096.
        count_per_block: kept coefficients of each, 1 to `block_size`.
        values: codec of the kept coefficients, of scope "element" or "block".

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.DCTTopK(block_size=8, count_per_block=1)
        >>> x = torch.ones(8)
        >>> payload = codec.encode(x, GradSpec.of("weight", x), torch.Generator())
        >>> payload.nbytes, codec.decode(payload).round(decimals=2).tolist()
        (4, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """

    block_size: int = 64
    count_per_block: int = 4
    values: Codec = field(default_factory=Cast)

    card: ClassVar[MethodCard] = MethodCard(
        id="dct_topk",
        kind="codec",
        summary="the largest cosine coefficients of each block, indices packed",
        scope="tensor",
        contraction="count_per_block / block_size times the contraction of its values codec",
        reducer="gather",
        reference="Peng et al. 2024, arXiv:2411.19870",
        use_when="neighbouring entries of the gradient are alike; combine with error feedback",
        avoid_when="neighbouring entries differ; topk then keeps more of the gradient in as many bytes",
    )

    def __post_init__(self) -> None:
        check_integer("block_size", self.block_size, low=2, high=4096)
        self._selection()  # checks the other settings

    def _selection(self) -> ChunkedTopK:
        return ChunkedTopK(self.block_size, self.count_per_block, self.values)

    def contraction(self, numel: int) -> float:
        """Return the contraction of the selection, since the transform changes no norm; padding zeros are not kept."""
        return self._selection().contraction(self._padded(numel))

    def _padded(self, numel: int) -> int:
        return -(-numel // self.block_size) * self.block_size

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout of the selected coefficients."""
        return self._selection().layout(spec.part(self._padded(spec.numel)))

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Transform each block and select its largest coefficients."""
        blocks = torch.nn.functional.pad(flat, (0, -spec.numel % self.block_size)).view(-1, self.block_size)
        coefficients = (blocks @ dct_matrix(self.block_size, flat.device).T).view(-1)
        return Payload(self._selection().encode(coefficients, spec.part(coefficients.numel()), generator).tensors, spec)

    def decode(self, payload: Payload) -> Tensor:
        """Transform the kept coefficients back."""
        spec = payload.spec
        coefficients = Payload(checked_tensors(self, payload), spec.part(self._padded(spec.numel)))
        entries = self._selection().entries(coefficients)
        if entries is None:
            indices, values = torch.arange(self._padded(spec.numel), device=spec.device), coefficients.tensors[0]
        else:
            indices, values = entries
        num_blocks = self._padded(spec.numel) // self.block_size
        if not num_blocks:
            return values
        indices, values = indices.view(num_blocks, -1), values.view(num_blocks, -1)
        if bool((indices // self.block_size != torch.arange(num_blocks, device=spec.device)[:, None]).any()):
            raise PayloadError(
                f"a payload of dct_topk for {spec.name!r} has not {values.shape[1]} coefficients in each block of "
                f"{self.block_size}; it is damaged."
            )
        # Cosine by cosine: the same bits on any hardware, which a matrix product does not give.
        out = torch.zeros(num_blocks, self.block_size, dtype=torch.float32, device=spec.device)
        cosines = dct_matrix(self.block_size, spec.device)
        for start, stop in pieces(num_blocks, 1, spec.device, numel_each=self.block_size):
            for index, value in zip(
                indices[start:stop].T.remainder(self.block_size), values[start:stop].T, strict=True
            ):
                out[start:stop].add_(cosines[index].mul_(value[:, None]))
        return out.view(-1)[: spec.numel]


@lru_cache(maxsize=8)
def dct_matrix(size: int, device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II as a matrix (size, size), float32: row k is the k-th cosine."""
    position = torch.arange(size, dtype=torch.float64, device="cpu")
    rows = torch.cos(math.pi / size * (position[None, :] + 0.5) * position[:, None])
    rows[0] *= 0.5**0.5
    matrix: Tensor = (rows * (2 / size) ** 0.5).float().to(device)
    return matrix
