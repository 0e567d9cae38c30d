"""Finds loaders that write the next batch into the memory of one that still waits in its window.

A window that is fetched before its first backward needs all its batches at once. Some loaders hand out one buffer
again and again, which is right in a loop that uses each batch before it fetches the next (NVIDIA/DALI issue 1375).

Memory that several batches share is no fault as long as nobody writes to it: a batch that is repeated, overlapping
slices of one tensor. So a digest of each tensor is taken when it is fetched, of a sample of its entries where there are
many, and compared where a later batch of the window lies in the same memory. Torch's version counters alone would not
do: writes through NumPy, other libraries and `.data` leave them as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightgrad.accumulate.batch_tree import Array, entries, is_array
from tightgrad.core.errors import UsageError

WHOLE = 16384  # entries up to which a tensor is compared in full
SAMPLE = 4096
_GOLDEN = 0.6180339887498949  # steps of this share of the whole spread evenly, without the period of rows or channels
_DEPTH = 6
_WAY_OUT = (
    'Take Accumulate(fetch="batch"), which uses each batch before the next one is fetched, or let the loader yield '
    "copies (clone())."
)


@dataclass(frozen=True)
class _Seen:
    """A tensor as it was when it was fetched: where it lies, its version and what it held."""

    batch: int
    path: str
    array: Array
    start: int
    stop: int
    version: int | None
    digest: int | Tensor

    @property
    def was_written(self) -> bool:
        """Whether its entries are others now."""
        before, now = self.digest, digest(self.array)
        same = torch.equal(before, now) if isinstance(before, Tensor) and isinstance(now, Tensor) else before == now
        if not same:
            return True
        is_whole = _numel(self.array) <= WHOLE
        return not is_whole and _version(self.array) != self.version


class WaitingBatches:
    """The batches of one window while they are fetched."""

    def __init__(self) -> None:
        self._seen: list[_Seen] = []
        self._num_batches = 0

    def fetched(self, batch: Any) -> None:
        """Take note of a batch that has just come from the loader."""
        for path, array in _arrays(batch, "batch", _DEPTH):
            span = _span(array)
            if span is not None:
                seen = _Seen(self._num_batches, path, array, *span, _version(array), digest(array))
                self._seen.append(seen)
        self._num_batches += 1

    def check(self) -> None:
        """Look through the window once it is fetched.

        Raises:
            UsageError: a later batch lies in the memory of an earlier one, which has been written to in between.
        """
        for earlier, later in _overlapping(self._seen):
            if earlier.was_written:
                raise UsageError(
                    f"the loader has written micro-batch {later.batch} into the memory of micro-batch {earlier.batch} "
                    f"({earlier.path}), which still waits in the same window: it reuses its buffers. {_WAY_OUT}"
                )

    def hand_out(self, position: int) -> None:
        """Look at a batch once more when its turn comes: a thread of the loader may have gone on writing. Writes that
        torch has counted are left alone, since they may be the user's own; an accelerator is not waited for.

        Raises:
            UsageError: it is not what was fetched.
        """
        mine = [seen for seen in self._seen if seen.batch == position]
        self._seen = [seen for seen in self._seen if seen.batch > position]
        for seen in mine:
            if _is_on_host(seen.array) and _version(seen.array) == seen.version and seen.was_written:
                raise UsageError(
                    f"micro-batch {position} ({seen.path}) has been written to since it was fetched, while it waited "
                    f"in its window: the loader reuses its buffers. {_WAY_OUT}"
                )


def _overlapping(seen: list[_Seen]) -> list[tuple[_Seen, _Seen]]:
    """Each tensor that lies in the same memory as one of a later batch, and that one."""
    found: dict[int, tuple[_Seen, _Seen]] = {}
    under_way: list[_Seen] = []
    for item in sorted(seen, key=lambda item: item.start):
        under_way = [other for other in under_way if other.stop > item.start]
        for other in under_way:
            if other.batch != item.batch:
                earlier, later = sorted((other, item), key=lambda one: one.batch)
                found.setdefault(id(earlier), (earlier, later))
        under_way.append(item)
    return list(found.values())


def _arrays(value: Any, path: str, depth: int) -> Iterator[tuple[str, Array]]:
    """Tensors and arrays of a batch, also those that are attributes of an object."""
    if is_array(value):
        yield path, value
        return
    if depth == 0 or isinstance(value, str | bytes | int | float | type | torch.nn.Module):
        return
    items = list(entries(value, path))
    if not items and hasattr(value, "__dict__"):
        items = [(f"{path}.{name}", name, item) for name, item in vars(value).items()]
    for item_path, _, item in items:
        yield from _arrays(item, item_path, depth - 1)


def _span(array: Array) -> tuple[int, int] | None:
    """First address and the one after the last; None where there is no memory to look at."""
    if isinstance(array, np.ndarray):
        if array.size == 0 or array.dtype.hasobject:
            return None
        start, strides, itemsize = array.__array_interface__["data"][0], array.strides, array.itemsize
    else:
        if array.layout is not torch.strided or array.is_nested or array.numel() == 0 or array.device.type == "meta":
            return None
        try:
            start = array.data_ptr()
        except RuntimeError:  # a subclass without memory of its own
            return None
        itemsize = array.element_size()
        strides = tuple(stride * itemsize for stride in array.stride())
    if not start:
        return None
    ends = [(size - 1) * stride for size, stride in zip(array.shape, strides, strict=True)]
    return start + sum(end for end in ends if end < 0), start + sum(end for end in ends if end > 0) + itemsize


def _is_on_host(array: Array) -> bool:
    return isinstance(array, np.ndarray) or array.device.type == "cpu"


def _version(array: Array) -> int | None:
    """Torch's count of writes; None where there is none."""
    return None if isinstance(array, np.ndarray) or array.is_inference() else array._version


def _numel(array: Array) -> int:
    return array.size if isinstance(array, np.ndarray) else array.numel()


def digest(array: Array) -> int | Tensor:
    """What tells the content from another: on the host a number that needs no memory, on an accelerator the sample
    itself, so that nothing waits for it.
    """
    sample = _sample(array)
    if isinstance(sample, np.ndarray):
        return hash(sample.tobytes())
    return hash(_bytes(sample).numpy().tobytes()) if sample.is_cpu else _bytes(sample)


def _sample(array: Array) -> Array:
    """Some entries, spread over the whole; on the host all where they are few, else a copy."""
    if isinstance(array, np.ndarray):
        if array.size <= WHOLE:
            return array
        picked: Array = array[np.unravel_index(np.arange(SAMPLE) * _step(array.size) % array.size, array.shape)]
        return picked
    tensor = array.detach()
    if tensor.numel() <= WHOLE:
        return tensor if tensor.is_cpu else tensor.clone()
    places = torch.arange(SAMPLE, device=tensor.device) * _step(tensor.numel()) % tensor.numel()
    return tensor.view(-1)[places] if tensor.is_contiguous() else tensor[torch.unravel_index(places, tensor.shape)]


def _step(numel: int) -> int:
    """A step that comes by every entry before it repeats one."""
    return next(step for step in count(int(numel * _GOLDEN)) if gcd(step, numel) == 1)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
