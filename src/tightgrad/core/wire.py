"""Payloads to bytes and back.

The layout is known on both sides, so no header is sent. Where a codec's payload has a length that depends on the data,
ranks tell each other these lengths first.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload

HEADER_NBYTES = 16
"""A payload of data-dependent length may be this much longer than the elements themselves."""


def checked_tensors(codec: Codec, payload: Payload) -> tuple[Tensor, ...]:
    """Return the payload's tensors if they have the layout that `codec` expects, else raise `PayloadError`."""
    expected = codec.layout(payload.spec)
    found = tuple((tensor.dtype, tensor.numel()) for tensor in payload.tensors)
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


def most_nbytes(codec: Codec, spec: GradSpec) -> int:
    """Return the largest number of bytes that a payload of `spec` may have."""
    nbytes = codec.payload_nbytes(spec)
    return spec.dense_nbytes + HEADER_NBYTES if nbytes is None else nbytes


def fixed_nbytes(codec: Codec, spec: GradSpec) -> int:
    """Return the bytes of a payload whose size is known before the data is.

    Raises:
        PayloadError: it depends on the data.
    """
    nbytes = codec.payload_nbytes(spec)
    if nbytes is None:
        raise PayloadError(f"payloads of {codec.card.id} for {spec.name!r} have no fixed size; use the reducer gather.")
    return nbytes


def check_message(codec: Codec, message: Tensor, nbytes: int) -> None:
    """Raise `PayloadError` unless `message` is so many bytes."""
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
    buffer: Tensor, codec: Codec, specs: Sequence[GradSpec], nbytes: Sequence[int] | None = None
) -> list[Payload]:
    """Cut one uint8 tensor into the payloads of `specs`, in order.

    Args:
        buffer: what another rank's `to_bytes` gave.
        codec: the codec that encoded.
        specs: of its payloads.
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


def encode_message(
    codec: Codec, flats: Sequence[Tensor], specs: Sequence[GradSpec], generator_of: Callable[[str], torch.Generator]
) -> Tensor:
    """Encode several tensors (at least one) into one message of payloads of fixed size.

    Args:
        codec: of fixed size.
        flats: float32, each of shape (spec.numel,).
        specs: of them.
        generator_of: gives the generator of a tensor, by name.
    """
    message = codec.encode_together(flats, specs)
    if message is not None:
        return message
    payloads = [codec.encode(flat, spec, generator_of(spec.name)) for flat, spec in zip(flats, specs, strict=True)]
    return to_bytes(payloads, flats[0].device)


def decode_message(codec: Codec, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor]:
    """Undo `encode_message`: new tensors of shape (spec.numel,) and dtype spec.dtype.

    Raises:
        PayloadError: the message cannot have come from `encode_message`.
    """
    decoded = codec.decode_together(message, specs)
    if decoded is not None:
        return decoded
    return [codec.decode(payload) for payload in from_bytes(message, codec, specs)]


def add_message_to_(totals: Sequence[Tensor], codec: Codec, message: Tensor, specs: Sequence[GradSpec]) -> None:
    """Add what `decode_message` gives to 1-D tensors, in place; long ones without a decoded copy of the whole.

    Raises:
        PayloadError: the message cannot have come from `encode_message`.
    """
    decoded = codec.decode_together(message, specs)
    if decoded is not None:
        torch._foreach_add_(list(totals), decoded)
        return
    for total, payload in zip(totals, from_bytes(message, codec, specs), strict=True):
        codec.add_to_(total, payload)


class DecodedMessage:
    """Holds what `encode_message` gave, decoded once and added or subtracted as often as needed.

    Raises:
        PayloadError: the message cannot have come from `encode_message`; at once, or when payloads are decoded.
    """

    def __init__(self, codec: Codec, message: Tensor, specs: Sequence[GradSpec]) -> None:
        self._codec = codec
        self._entries = codec.entries_together(message, specs)
        self._payloads = from_bytes(message, codec, specs) if self._entries is None else []

    def add_to_(self, totals: Sequence[Tensor]) -> None:
        """Add to 1-D tensors, in place."""
        if self._entries is None:
            for total, payload in zip(totals, self._payloads, strict=True):
                self._codec.add_to_(total, payload)
            return
        for total, (indices, values) in zip(totals, self._entries, strict=True):
            total.index_add_(0, indices, values)

    def subtract_from_(self, values: Sequence[Tensor]) -> None:
        """Take off 1-D tensors, in place."""
        if self._entries is None:
            for value, payload in zip(values, self._payloads, strict=True):
                value.sub_(self._codec.decode(payload))
            return
        for value, (indices, sent) in zip(values, self._entries, strict=True):
            value.index_add_(0, indices, sent, alpha=-1)


def _sizes(available: int, codec: Codec, specs: Sequence[GradSpec]) -> list[int]:
    sizes = [codec.payload_nbytes(spec) for spec in specs]
    if sizes.count(None) > 1:
        raise PayloadError(f"{sizes.count(None)} payloads of {codec.card.id} have no fixed size; give their lengths.")
    left = max(0, available - sum(size for size in sizes if size is not None))
    return [left if size is None else size for size in sizes]


def _cut(buffer: Tensor, codec: Codec, spec: GradSpec) -> Payload:
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
