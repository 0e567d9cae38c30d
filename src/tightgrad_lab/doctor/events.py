"""Scalars in TensorBoard event files, read without TensorBoard.

A file is a sequence of records (length, checksum, data, checksum), each a protocol-buffer `Event`: step in field 2,
summary in field 5, whose field 1 is a value with its tag in field 1 and a float in field 2 or a tensor in field 8.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from tightgrad_lab.errors import ArgumentError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT, _DOUBLE = 1, 2
Field = tuple[int, int | bytes]


def read_events(path: Path) -> Iterator[tuple[int, str, float]]:
    """Step, tag and value of every scalar.

    Raises:
        ArgumentError: it is not an event file. A last record that is cut off is left out: a run may still be writing.
    """
    data = path.read_bytes()
    place = 0
    try:
        while place + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            begin, place = place + 12, place + 16 + length
            if place > len(data):
                return
            yield from _scalars(data[begin : begin + length])
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise ArgumentError(f"{path} is not a TensorBoard event file: {error}") from None


def _scalars(event: bytes) -> Iterator[tuple[int, str, float]]:
    step = 0
    summaries: list[bytes] = []
    for number, value in _fields(event):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, value in _fields(summary):
            if number == 1 and isinstance(value, bytes):
                tag, scalar = _value(value)
                if scalar is not None:
                    yield step, tag, scalar


def _value(data: bytes) -> tuple[str, float | None]:
    tag, scalar = "", None
    for number, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            tag = value.decode("utf-8")
        elif number == 2:
            (scalar,) = struct.unpack("<f", value)
        elif number == 8:
            scalar = _tensor(value)
    return tag, scalar


def _tensor(data: bytes) -> float | None:
    """The one element of a float or double tensor; None for any other."""
    kind, content = 0, b""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in (4, 5, 6) and isinstance(value, bytes):
            content = value
    if kind == _FLOAT and len(content) == 4:
        return float(struct.unpack("<f", content)[0])
    if kind == _DOUBLE and len(content) == 8:
        return float(struct.unpack("<d", content)[0])
    return None


def _fields(data: bytes) -> Iterator[Field]:
    """Number and value of each field: an integer, or the bytes of anything else."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind}")
        if place + length > len(data):
            raise ValueError("a field is longer than its record")
        yield number, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
