"""Payloads to bytes and back.

The layout is known on both sides, so no header is sent. Where a codec's payload has a length that depends on the data,
ranks tell each other these lengths first.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from tightgrad.core.card import MethodCard
from tightgrad.core.errors import PayloadError
from tightgrad.core.types import GradSpec, Payload, TensorLayout

HEADER_NBYTES = 16
"""A payload of data-dependent length may be this much longer than the elements themselves."""


class Layouts(Protocol):
    """Tells what is known about a codec's payloads before there are any; every codec does."""

    card: ClassVar[MethodCard]

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout of the payload of `spec.numel` elements."""

    def payload_nbytes(self, spec: GradSpec) -> int | None:
        """Return the bytes of that payload; None if they depend on the data."""


def checked_tensors(codec: Layouts, payload: Payload) -> tuple[Tensor, ...]:
    """Return the payload's tensors if they have the layout that `codec` expects, else raise `PayloadError`."""
    expected = codec.layout(payload.spec)
    found = tuple((tensor.dtype, *tensor.shape) for tensor in payload.tensors)
    wanted = tuple((layout.dtype, layout.numel) for layout in expected)
    matches = len(found) == len(wanted) and all(
        tensor.dim() == 1 and tensor.dtype is layout.dtype and layout.numel in (None, tensor.numel())
        for tensor, layout in zip(payload.tensors, expected, strict=True)
    )
    if not matches or payload.nbytes > most_nbytes(codec, payload.spec):
        raise PayloadError(
            f"a payload of {codec.card.id} for {payload.spec.name!r} ({payload.spec.numel} elements) has tensors "
            f"{found}, expected {wanted} of one dimension; the ranks run different versions or settings."
        )
    return payload.tensors


def most_nbytes(codec: Layouts, spec: GradSpec) -> int:
    """Return the largest number of bytes that a payload of `spec` may have."""
    nbytes = codec.payload_nbytes(spec)
    return spec.dense_nbytes + HEADER_NBYTES if nbytes is None else nbytes


def fixed_nbytes(codec: Layouts, spec: GradSpec) -> int:
    """Return the bytes of a payload whose size is known before the data is.

    Raises:
        PayloadError: it depends on the data.
    """
    nbytes = codec.payload_nbytes(spec)
    if nbytes is None:
        raise PayloadError(f"payloads of {codec.card.id} for {spec.name!r} have no fixed size; use the reducer gather.")
    return nbytes


def check_message(codec: Layouts, message: Tensor, nbytes: int) -> None:
    """Raise `PayloadError` unless `message` is a uint8 tensor of `nbytes` elements."""
    if message.dtype != torch.uint8 or message.dim() != 1 or message.numel() != nbytes:
        raise PayloadError(
            f"a message of {codec.card.id} has {message.numel()} elements of {message.dtype}, expected {nbytes} "
            "bytes; the ranks run different versions or settings."
        )


def to_bytes(payloads: Iterable[Payload], device: torch.device) -> Tensor:
    """Concatenate payloads into one uint8 tensor."""
    parts = [as_bytes(tensor) for payload in payloads for tensor in payload.tensors]
    parts = [part for part in parts if part.numel()]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=device)


def from_bytes(
    buffer: Tensor, codec: Layouts, specs: Sequence[GradSpec], nbytes: Sequence[int] | None = None
) -> list[Payload]:
    """Cut one uint8 tensor into the payloads of `specs`, in order.

    Args:
        buffer: what another rank's `to_bytes` returned.
        codec: the codec that encoded the payloads.
        specs: one for each payload.
        nbytes: length of each payload; needed when more than one has no fixed size.

    Raises:
        PayloadError: the buffer has another length than the specs ask for.
    """
    sizes = list(nbytes) if nbytes is not None else _sizes(buffer.numel(), codec, specs)
    check_message(codec, buffer, sum(sizes))
    payloads = []
    start = 0
    for spec, size in zip(specs, sizes, strict=True):
        payloads.append(_cut(buffer[start : start + size], codec, spec))
        start += size
    return payloads


def _sizes(available: int, codec: Layouts, specs: Sequence[GradSpec]) -> list[int]:
    sizes = [codec.payload_nbytes(spec) for spec in specs]
    if sizes.count(None) > 1:
        raise PayloadError(f"{sizes.count(None)} payloads of {codec.card.id} have no fixed size; give their lengths.")
    left = max(0, available - sum(size for size in sizes if size is not None))
    return [left if size is None else size for size in sizes]


def _cut(buffer: Tensor, codec: Layouts, spec: GradSpec) -> Payload:
    tensors = []
    start = 0
    for layout in codec.layout(spec):
        stop = buffer.numel() if layout.nbytes is None else start + layout.nbytes
        if stop > buffer.numel() or stop < start:
            break
        # A view as a wider dtype needs an aligned start, which a copy has.
        tensors.append(buffer[start:stop].clone().view(layout.dtype))
        start = stop
    if start != buffer.numel() or len(tensors) != len(codec.layout(spec)):
        raise PayloadError(
            f"a payload of {codec.card.id} for {spec.name!r} ({spec.numel} elements) has {buffer.numel()} bytes, which "
            "is not what its layout asks for; the ranks run different versions or settings."
        )
    return Payload(tuple(tensors), spec)


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the elements as uint8, in one dimension."""
    # A tensor of one element may keep any stride, even a contiguous copy, and then refuses to be viewed as bytes.
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
