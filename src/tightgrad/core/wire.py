"""Payloads to bytes and back. The layout is known on both sides, so no header is sent."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload


def checked_tensors(codec: Codec, payload: Payload) -> tuple[Tensor, ...]:
    """Return the payload's tensors if they have the layout that `codec` expects, else raise `PayloadError`."""
    expected = codec.layout(payload.spec)
    found = tuple((tensor.dtype, tensor.numel()) for tensor in payload.tensors)
    wanted = tuple((layout.dtype, layout.numel) for layout in expected)
    if found != wanted:
        raise PayloadError(
            f"a payload of {codec.card.id} for {payload.spec.name!r} ({payload.spec.numel} elements) has tensors "
            f"{found}, expected {wanted}; the ranks run different versions or settings."
        )
    return payload.tensors


def to_bytes(payloads: Iterable[Payload], device: torch.device) -> Tensor:
    """Concatenate payloads into one uint8 tensor."""
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for payload in payloads for tensor in payload.tensors]
    parts = [part for part in parts if part.numel()]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8, device=device)


def from_bytes(buffer: Tensor, codec: Codec, specs: Sequence[GradSpec]) -> list[Payload]:
    """Cut one uint8 tensor into the payloads of `specs`, in order.

    Raises:
        PayloadError: the buffer has another length than the specs ask for.
    """
    expected = sum(codec.payload_nbytes(spec) for spec in specs)
    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or buffer.numel() != expected:
        raise PayloadError(
            f"a message of {codec.card.id} has {buffer.numel()} elements of {buffer.dtype}, expected {expected} bytes; "
            "the ranks run different versions or settings."
        )
    payloads = []
    start = 0
    for spec in specs:
        tensors = []
        for layout in codec.layout(spec):
            stop = start + layout.nbytes
            # A view as a wider dtype needs an aligned start, which a copy has.
            tensors.append(buffer[start:stop].clone().view(layout.dtype))
            start = stop
        payloads.append(Payload(tuple(tensors), spec))
    return payloads
