"""Base classes of codecs that send some entries: packed indices, and values encoded by a second codec.

Where all entries in float32 take fewer bytes, these are sent instead.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tightgrad.codecs.bits.packing import index_nbytes, pack_indices, unpack_indices
from tightgrad.codecs.bits.sparse_message import (
    KEPT_LAYOUTS,
    MOST_ENTRIES,
    MessageLayout,
    is_supported,
    message_layout,
    pack_message,
    unpack_message,
)
from tightgrad.codecs.bits.together import Together
from tightgrad.core.errors import ConfigError, PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors, fixed_nbytes, from_bytes, to_bytes

COUNT_NBYTES = 8
DENSE = -1
"""In place of a count: all entries follow, as they are."""


def check_values(values: object) -> None:
    """Raise `ConfigError` unless `values` can encode the kept entries."""
    if not isinstance(values, Codec) or values.scope not in ("element", "block") or not values.fixed_size:
        raise ConfigError(
            f"values={values!r} must be a codec of scope element or block and fixed size, such as Cast()."
        )


class Sparse(Together):
    """Sends a number of entries that is known beforehand: packed indices, and values encoded by another codec."""

    values: Codec

    @abstractmethod
    def count(self, numel: int) -> int:
        """Return how many of `numel` entries are kept."""

    @abstractmethod
    def select(self, flat: Tensor, count: int) -> Tensor:
        """Return ascending int64 indices of the kept entries."""

    def contraction(self, numel: int) -> float:
        """Return k / n: the largest k of n entries hold at least that share of the squared norm."""
        count = self.count(numel)
        return self.values.contraction(count) * count / numel if numel else 1.0

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout: low index bits, high index bits, then the values' payload; or all entries in float32."""
        layout = self._sparse_layout(spec)
        nbytes = sum(part.nbytes for part in layout if part.nbytes is not None)
        return layout if nbytes <= spec.dense_nbytes else (TensorLayout(spec.dtype, spec.numel),)

    def _sparse_layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        count = self.count(spec.numel)
        indices = tuple(TensorLayout(torch.uint8, nbytes) for nbytes in index_nbytes(spec.numel, count))
        return indices + self.values.layout(spec.part(count))

    def is_dense(self, spec: GradSpec) -> bool:
        """Tell whether all entries are sent, as they are."""
        return len(self.layout(spec)) == 1

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Select entries, and pack them in index order."""
        if self.is_dense(spec):
            return Payload((flat.clone(),), spec)
        count = self.count(spec.numel)
        indices = self.select(flat, count)
        kept = self.values.encode(flat[indices], spec.part(count), generator)
        return Payload((*pack_indices(indices, spec.numel), *kept.tensors), spec)

    def goes_together(self, specs: Sequence[GradSpec]) -> bool:
        """Tell whether the tensors have few entries in all, and values that are encoded without random numbers."""
        return self._counts_together(specs) is not None

    def encode_together(self, flats: Sequence[Tensor], specs: Sequence[GradSpec]) -> Tensor:
        """Select in each tensor, and pack all entries together."""
        layout = self._message_layout(specs)
        indices = [self.select(flat, count) for flat, count in zip(flats, layout.counts, strict=True)]
        kept = [flat[chosen] for flat, chosen in zip(flats, indices, strict=True)]
        return pack_message(torch.cat(indices), torch.cat(kept), self.values, layout)

    def decode_together(self, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor]:
        """Unpack the entries of all tensors together, and scatter them into zeros."""
        entries = zip(*unpack_message(message, self.values, self._message_layout(specs)), specs, strict=True)
        return [scattered(indices, values, spec) for indices, values, spec in entries]

    def add_together_(self, totals: Sequence[Tensor], message: Tensor, specs: Sequence[GradSpec], alpha: int) -> None:
        """Unpack the entries of all tensors together, and add them, leaving the others untouched."""
        entries = unpack_message(message, self.values, self._message_layout(specs))
        for total, indices, values in zip(totals, *entries, strict=True):
            total.index_add_(0, indices, values, alpha=alpha)

    def _message_layout(self, specs: Sequence[GradSpec]) -> MessageLayout:
        counts = self._counts_together(specs)
        assert counts is not None
        return message_layout(self.values, tuple(spec.numel for spec in specs), counts)

    def _counts_together(self, specs: Sequence[GradSpec]) -> tuple[int, ...] | None:
        """How many entries of each tensor are kept; None where tensors are better handled one by one."""
        if len(specs) < 2 or not is_supported(self.values) or specs[0].device.type != "cpu":
            return None
        return _counts_of(self, tuple((spec.numel, spec.dtype) for spec in specs))

    def decode(self, payload: Payload) -> Tensor:
        """Scatter the values into zeros."""
        entries = self.entries(payload)
        return payload.tensors[0].clone() if entries is None else scattered(*entries, payload.spec)

    def decode_to_(self, out: Tensor, payload: Payload) -> None:
        """Write zeros to `out`, and scatter the values into it."""
        self.add_to_(out.zero_(), payload)

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add the kept entries to `total`, leaving the others untouched."""
        entries = self.entries(payload)
        if entries is None:
            total.add_(payload.tensors[0])
        else:
            total.index_add_(0, *entries)

    def entries(self, payload: Payload) -> tuple[Tensor, Tensor] | None:
        """Return ascending indices and values; None if all entries were sent, as they are."""
        tensors = checked_tensors(self, payload)
        if self.is_dense(payload.spec):
            return None
        low, high, *values = tensors
        count = self.count(payload.spec.numel)
        indices = unpack_indices(low, high, payload.spec.numel, count)
        return indices, self.values.decode(Payload(tuple(values), payload.spec.part(count)))


@lru_cache(maxsize=KEPT_LAYOUTS)
def _counts_of(codec: Sparse, tensors: tuple[tuple[int, torch.dtype], ...]) -> tuple[int, ...] | None:
    """The same at every step, and asked for each message."""
    counts = tuple(codec.count(numel) for numel, _ in tensors)
    specs = (GradSpec("", (numel,), numel, dtype) for numel, dtype in tensors)
    if not all(counts) or sum(counts) > MOST_ENTRIES or any(map(codec.is_dense, specs)):
        return None
    return counts


class VariableSparse(Codec):
    """Sends a number of entries that depends on the data: one tensor of count, indices and values."""

    values: Codec

    @property
    def fixed_size(self) -> bool:
        """Tell whether payloads have a known size; these do not."""
        return False

    @abstractmethod
    def select(self, flat: Tensor, generator: torch.Generator) -> Tensor:
        """Return ascending int64 indices of the kept entries."""

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout: one tensor, whose length depends on the data."""
        return (TensorLayout(torch.uint8, None),)

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Select entries, and pack them in index order."""
        indices = self.select(flat, generator)
        message = pack_entries(flat, indices, self.values, spec, generator)
        return Payload((or_dense(message, flat, spec),), spec)

    def decode(self, payload: Payload) -> Tensor:
        """Scatter the values into zeros."""
        indices, values = self.entries(payload)
        return values if indices is None else scattered(indices, values, payload.spec)

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add the kept entries to `total`, leaving the others untouched."""
        indices, values = self.entries(payload)
        if indices is None:
            total.add_(values)
        else:
            total.index_add_(0, indices, values)

    def entries(self, payload: Payload) -> tuple[Tensor | None, Tensor]:
        """Return ascending indices and values; None instead of indices if all entries were sent, as they are."""
        (message,) = checked_tensors(self, payload)
        dense = dense_entries(message, payload.spec)
        if dense is not None:
            return None, dense
        indices, values, rest = unpack_entries(message, self.values, payload.spec)
        if rest.numel():
            raise PayloadError(f"{rest.numel()} bytes follow a payload of {self.card.id}; it is damaged.")
        return indices, values


def scattered(indices: Tensor, values: Tensor, spec: GradSpec) -> Tensor:
    """Return zeros with `values` at `indices`. Memory is allocated last, when the payload has been found good."""
    total = torch.zeros(spec.numel, dtype=spec.dtype, device=spec.device)
    return total.index_add_(0, indices, values)


def pack_entries(flat: Tensor, indices: Tensor, values: Codec, spec: GradSpec, generator: torch.Generator) -> Tensor:
    """Pack count, indices and values into bytes."""
    count = indices.numel()
    kept = values.encode(flat[indices], spec.part(count), generator)
    return torch.cat(
        [count_bytes(count, flat.device), *pack_indices(indices, spec.numel), to_bytes([kept], flat.device)]
    )


def unpack_entries(message: Tensor, values: Codec, spec: GradSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `pack_entries`: indices, values, and the bytes that follow.

    Raises:
        PayloadError: the bytes do not begin with entries.
    """
    count = read_count(message)
    if not 0 <= count <= spec.numel:
        raise PayloadError(f"a payload for {spec.name!r} has {count} of {spec.numel} entries; it is damaged.")
    part = spec.part(count)
    num_low, num_high = index_nbytes(spec.numel, count)
    ends = [COUNT_NBYTES, COUNT_NBYTES + num_low, COUNT_NBYTES + num_low + num_high]
    ends.append(ends[-1] + fixed_nbytes(values, part))
    if message.numel() < ends[-1]:
        raise PayloadError(
            f"a payload for {spec.name!r} has {message.numel()} bytes, expected {ends[-1]} for {count} entries; it is "
            "damaged."
        )
    indices = unpack_indices(message[ends[0] : ends[1]], message[ends[1] : ends[2]], spec.numel, count)
    (kept,) = from_bytes(message[ends[2] : ends[3]], values, [part])
    return indices, values.decode(kept), message[ends[3] :]


def or_dense(message: Tensor, flat: Tensor, spec: GradSpec) -> Tensor:
    """Return the message, or all entries as they are where that takes fewer bytes."""
    if message.numel() <= COUNT_NBYTES + spec.dense_nbytes:
        return message
    return torch.cat([count_bytes(DENSE, flat.device), flat.contiguous().view(torch.uint8)])


def dense_entries(message: Tensor, spec: GradSpec) -> Tensor | None:
    """Return what `or_dense` sent in full; None if it did not."""
    if read_count(message) != DENSE:
        return None
    if message.numel() != COUNT_NBYTES + spec.dense_nbytes:
        raise PayloadError(f"a dense payload for {spec.name!r} has {message.numel()} bytes; it is damaged.")
    return message[COUNT_NBYTES:].clone().view(spec.dtype)


def count_bytes(count: int, device: torch.device) -> Tensor:
    """Write a number into 8 bytes."""
    return torch.tensor([count], dtype=torch.int64, device=device).view(torch.uint8)


def read_count(message: Tensor) -> int:
    """Read the number that `count_bytes` wrote at the beginning.

    Raises:
        PayloadError: there are not that many bytes.
    """
    if message.numel() < COUNT_NBYTES:
        raise PayloadError(f"a payload has {message.numel()} bytes, not even a count; it is damaged.")
    return int(message[:COUNT_NBYTES].clone().view(torch.int64))
