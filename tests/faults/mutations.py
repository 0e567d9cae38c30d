"""Damage, drawn from a seeded generator: the same seed gives the same damage."""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan

import torch

from tightgrad.core.types import Payload

Damage = Callable[[bytearray, random.Random], bytearray]
HUGE = (-(2**63), -2, -1, 0, 1, 2**31, 2**32 + 1, 2**53, 2**62, 2**63 - 1)
FLOATS = (nan, inf, -inf, 3.4028234e38, -3.4028234e38, 1e-45, 0.0, -0.0, 1e30)


def _bits(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.randint(1, 8)):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data


def _bytes(data: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.randint(1, 16)):
        if data:
            data[draw.randrange(len(data))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    return data


def _noise(data: bytearray, draw: random.Random) -> bytearray:
    start = draw.choice((0, draw.randint(0, len(data))))
    return data[:start] + bytearray(draw.randbytes(len(data) - start))


def _same(data: bytearray, draw: random.Random) -> bytearray:
    start, stop = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    data[start:stop] = bytes([draw.choice((0, 255, 127))]) * (stop - start)
    return data


def _truncated(data: bytearray, draw: random.Random) -> bytearray:
    return data[: draw.choice((0, 1, len(data) // 2, max(0, len(data) - 1), draw.randint(0, len(data))))]


def _extended(data: bytearray, draw: random.Random) -> bytearray:
    return data + bytearray(draw.randbytes(draw.choice((1, 3, 8, 100, 1_000))))


def _cut_out(data: bytearray, draw: random.Random) -> bytearray:
    start, stop = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    return data[:start] + data[stop:]


def _repeated(data: bytearray, draw: random.Random) -> bytearray:
    start, stop = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    return data[:stop] + data[start:]


def _swapped(data: bytearray, draw: random.Random) -> bytearray:
    middle = draw.randint(0, len(data))
    return data[middle:] + data[:middle]


def _put(data: bytearray, draw: random.Random, packed: bytes) -> bytearray:
    if len(data) >= len(packed):
        start = draw.choice((0, len(data) - len(packed), draw.randint(0, len(data) - len(packed))))
        data[start : start + len(packed)] = packed
    return data


def _count(data: bytearray, draw: random.Random) -> bytearray:
    return _put(data, draw, struct.pack("<q", draw.choice((*HUGE, draw.randint(0, 2_000)))))


def _number(data: bytearray, draw: random.Random) -> bytearray:
    return _put(data, draw, struct.pack("<f", draw.choice(FLOATS)))


BYTES: dict[str, Damage] = {
    "bits": _bits,
    "bytes": _bytes,
    "noise": _noise,
    "same": _same,
    "truncated": _truncated,
    "extended": _extended,
    "cut out": _cut_out,
    "repeated": _repeated,
    "swapped": _swapped,
    "count": _count,
    "number": _number,
}


def damaged_bytes(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """One or two kinds of damage; their names."""
    names = draw.choices(list(BYTES), k=draw.choice((1, 1, 1, 2)))
    result = bytearray(data)
    for name in names:
        result = BYTES[name](result, draw)
    return "+".join(names), bytes(result)


def _wrong_spec(payload: Payload, draw: random.Random) -> Payload:
    numel = payload.spec.numel
    other = draw.choice((0, 1, max(0, numel - 1), numel + 1, 2 * numel + 8, 100_000))
    return replace(payload, spec=replace(payload.spec, numel=other, shape=draw.choice(((other,), payload.spec.shape))))


def _wrong_place(payload: Payload, draw: random.Random) -> Payload:
    spec = payload.spec
    changes = {"seed": draw.getrandbits(60), "step": draw.choice((0, 4, 10**9)), "shape": (2, 3), "name": "matrix"}
    key = draw.choice(list(changes))
    return replace(payload, spec=replace(spec, **{key: changes[key]}))


def _wrong_tensor(payload: Payload, draw: random.Random) -> Payload:
    tensors = list(payload.tensors)
    if not tensors:
        return payload
    index = draw.randrange(len(tensors))
    tensor = tensors[index]
    kind = draw.randrange(6)
    if kind == 0:
        tensors[index] = tensor.to(draw.choice((torch.float64, torch.int64, torch.bool, torch.int8, torch.bfloat16)))
    elif kind == 1:
        tensors[index] = draw.choice((tensor[None], tensor[:, None], tensor[:0], tensor[:1].view(-1)))
    elif kind == 2:
        tensors.reverse()
    elif kind == 3:
        del tensors[index]
    elif kind == 4:
        tensors.insert(index, draw.choice((tensor, torch.zeros(3), torch.zeros(0, dtype=torch.uint8))))
    else:
        tensors[index] = tensor[torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(index))]
    return replace(payload, tensors=tuple(tensors))


OBJECTS: dict[str, Callable[[Payload, random.Random], Payload]] = {
    "wrong number of elements": _wrong_spec,
    "wrong name, shape, seed or step": _wrong_place,
    "wrong tensor": _wrong_tensor,
}
