"""Damaged payloads of every codec, and damaged messages of several tensors."""

import random
from collections.abc import Callable, Iterator
from functools import partial

import torch

from conformance.cases import CODECS
from faults.mutations import OBJECTS, damaged_bytes
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad.core.wire import from_bytes, to_bytes

CPU = torch.device("cpu")
SHAPES = ((0,), (1,), (7,), (20, 15), (1_001,))
KINDS = (*OBJECTS, *["bytes"] * 6, "message")
MESSAGE_NUMELS = (300, 1_001, 64)


def attempts(seed: int) -> Iterator[Callable[[], str]]:
    draw = random.Random(seed)
    originals = [_encoded(codec, shape) for codec in CODECS for shape in SHAPES]
    messages = [message for codec in CODECS if (message := _message(codec)) is not None]
    while True:
        kind = draw.choice(KINDS)
        if kind == "message":
            yield partial(_attempt_message, *draw.choice(messages), random.Random(draw.getrandbits(64)))
        else:
            codec, payload = draw.choice(originals)
            yield partial(_attempt, codec, payload, kind, random.Random(draw.getrandbits(64)))


def _encoded(codec: Codec, shape: tuple[int, ...]) -> tuple[Codec, Payload]:
    flat = torch.randn(shape, generator=torch.Generator().manual_seed(1)).view(-1)
    spec = GradSpec("weight", shape, flat.numel(), seed=5, step=3)
    return codec, codec.encode(flat, spec, torch.Generator().manual_seed(2))


def _attempt(codec: Codec, payload: Payload, kind: str, draw: random.Random) -> str:
    described = kind
    try:
        if kind == "bytes":
            message = bytes(to_bytes([payload], CPU).numpy())
            described, message = damaged_bytes(message, draw)
            received = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.empty(0).byte()
            (damaged,) = from_bytes(received, codec, [payload.spec], draw.choice((None, [received.numel()])))
        else:
            damaged = OBJECTS[kind](payload, draw)
        return _decoded(codec, damaged)
    except PayloadError:
        return "payloads: PayloadError"
    except BaseException as error:
        error.add_note(f"{codec!r}, {payload.spec.numel} elements, {described}")
        raise


def _decoded(codec: Codec, payload: Payload) -> str:
    """By each of the three ways, which must agree."""
    spec = payload.spec
    decoded = codec.decode(payload)
    assert decoded.shape == (spec.numel,), decoded.shape
    assert decoded.dtype == torch.float32, decoded.dtype
    out = torch.full((spec.numel,), 7.0)
    codec.decode_to_(out, payload)
    assert torch.equal(out.nan_to_num(), decoded.nan_to_num())
    total = torch.zeros(spec.numel)
    codec.add_to_(total, payload)
    assert torch.equal(total.nan_to_num(), decoded.nan_to_num())
    return f"payloads: decoded, {'finite' if bool(decoded.isfinite().all()) else 'inf or NaN for the guard to see'}"


def _message(codec: Codec) -> tuple[Codec, list[GradSpec], bytes] | None:
    """Several tensors in one message; None where their lengths would have to be told."""
    if not codec.fixed_size:
        return None
    flats = [torch.randn(numel, generator=torch.Generator().manual_seed(numel)) for numel in MESSAGE_NUMELS]
    specs = [GradSpec.of(f"p{place}", flat, seed=place, step=3) for place, flat in enumerate(flats)]
    message = codec.encode_all(flats, specs, lambda name: torch.Generator())
    return codec, specs, bytes(message.numpy())


def _attempt_message(codec: Codec, specs: list[GradSpec], message: bytes, draw: random.Random) -> str:
    """Together or one by one: the same tensors, or an error from both."""
    described, message = damaged_bytes(message, draw)
    received = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.empty(0).byte()
    try:
        expected = _one_by_one(codec, received, specs)
        try:
            totals = [torch.zeros(spec.numel) for spec in specs]
            codec.add_all_to_(totals, received, specs)
        except PayloadError:
            assert expected is None, "refused together, and not one by one"
            return "messages: PayloadError"
        assert expected is not None, "refused one by one, and not together"
        for total, one in zip(totals, expected, strict=True):
            assert torch.equal(total.nan_to_num(), one.nan_to_num())
        return "messages: decoded, as one by one"
    except BaseException as error:
        error.add_note(f"{codec!r}, a message of {len(specs)} tensors, {described}")
        raise


def _one_by_one(codec: Codec, received: torch.Tensor, specs: list[GradSpec]) -> list[torch.Tensor] | None:
    try:
        return [codec.decode(payload) for payload in from_bytes(received, codec, specs)]
    except PayloadError:
        return None
