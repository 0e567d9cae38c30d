"""Finds loaders that write the next batch into the memory of one that still waits in its window.

A window that is fetched before its first backward needs all its batches at once. Some loaders hand out one buffer
again and again, which is right in a loop that uses each batch before it fetches the next (NVIDIA/DALI issue 1375).

Memory that several batches share is no fault as long as nobody writes to it: a batch that is repeated, overlapping
slices of one tensor. So a digest of each tensor is taken when it is fetched, of a sample of its entries where there are
many, and compared where a later batch of the window lies in the same memory. Torch's version counters alone would not
do: writes through NumPy, other libraries and `.data` leave them as they are. Containers that are filled again, such as
one dict for all batches, are seen by what is in them.
"""

from collections import deque
from dataclasses import dataclass
from itertools import count, islice
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightgrad.accumulate.batch_tree import Array, entries, is_array, is_constant
from tightgrad.core.errors import UsageError

WHOLE = 16384  # entries up to which a tensor is compared in full
SAMPLE = 4096
_GOLDEN = 0.6180339887498949  # steps of this share of the whole spread evenly, without the period of rows or channels
_PARTS = {  # torch 2.9 to 2.14: the public accessors of COO refuse what is not coalesced
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("col_indices", "values"),
    torch.sparse_bsr: ("col_indices", "values"),
    torch.sparse_csc: ("row_indices", "values"),
    torch.sparse_bsc: ("row_indices", "values"),
    torch.jagged: ("offsets", "values"),
}
_MOST = 4096  # entries of a batch, and of all that is in it, that are looked at
_WAY_OUT = (
    'Take Accumulate(fetch="batch"), which uses each batch before the next one is fetched, or let the loader yield a '
    "new batch each time (clone())."
)


@dataclass(frozen=True)
class _Seen:
    """Keeps a tensor as it was when it was fetched: where it lies, its version and what it held."""

    batch: int
    path: str
    array: Array
    start: int
    stop: int
    version: int | None
    digest: int | Tensor

    @property
    def has_moved(self) -> bool:
        """Whether it lies elsewhere now."""
        return _span(self.array) != (self.start, self.stop)

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
    """Watches the batches of one window while they are fetched."""

    def __init__(self) -> None:
        self._seen: list[_Seen] = []
        self._batches: list[tuple[Any, list[tuple[str, Any]]]] = []

    def fetched(self, batch: Any) -> None:
        """Take note of a batch that has just come from the loader."""
        leaves = _leaves(batch)
        for path, leaf in leaves:
            for array in _arrays(leaf):
                span = _span(array)
                if span is not None:
                    self._seen.append(_Seen(len(self._batches), path, array, *span, _version(array), digest(array)))
        self._batches.append((batch, leaves))

    def check(self) -> None:
        """Look through the window once it is fetched; batches may be changed by others from then on.

        Raises:
            UsageError: a batch holds something else than when it was fetched, or a later one lies in the memory of an
                earlier one, which has been written to in between.
        """
        batches, self._batches = self._batches, []
        for position, (batch, before) in enumerate(batches):
            now = _leaves(batch)
            changed = [old[0] for old, new in zip(before, now, strict=False) if not _is_same(old, new)]
            changed += [seen.path for seen in self._seen if seen.batch == position and seen.has_moved]
            if changed or len(before) != len(now):
                raise UsageError(
                    f"the loader has put something else into micro-batch {position} ({[*changed, 'batch'][0]}), which "
                    f"still waits in its window: it reuses its buffers. {_WAY_OUT}"
                )
        for earlier, later in _overlapping(self._seen):
            if earlier.was_written:
                raise UsageError(
                    f"the loader has written micro-batch {later.batch} into the memory of micro-batch {earlier.batch} "
                    f"({earlier.path}), which still waits in the same window: it reuses its buffers. {_WAY_OUT}"
                )

    def hand_out(self, position: int) -> None:
        """Look at a batch once more when its turn comes: a thread of the loader may have gone on writing.

        Writes that torch has counted are left alone, since they may be the user's own; an accelerator is not waited
        for.

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


def _leaves(batch: Any) -> list[tuple[str, Any]]:
    """Path and value of what a batch is made of; of attributes of objects, which may count or cache, arrays only."""
    found, queue = [], deque([("batch", batch, False)])
    for _ in range(_MOST):
        if not queue:
            break
        path, value, in_object = queue.popleft()
        is_leaf = is_array(value) or isinstance(value, str | type | torch.nn.Module)
        items = [] if is_leaf else list(islice(entries(value, path), _MOST))
        if not items and isinstance(value, list | tuple):  # of a class of their own
            items = [(f"{path}[{index}]", index, item) for index, item in enumerate(value[:_MOST])]
        elif not items and not is_leaf:
            slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
            fields = {name: getattr(value, name) for name in slots if hasattr(value, name)}
            fields |= getattr(value, "__dict__", {})
            items = [(f"{path}.{name}", name, item) for name, item in fields.items()]
            in_object = in_object or bool(items)
        queue.extend((item_path, item, in_object) for item_path, _, item in items)
        if not items and (is_array(value) or not in_object):
            found.append((path, value))
    return found


def _is_same(old: tuple[str, Any], new: tuple[str, Any]) -> bool:
    """Whether an entry of a batch is what it was, its memory aside."""
    (path, before), (other, now) = old, new
    return path == other and (before is now or (is_constant(before) and not is_array(before) and before == now))


def _arrays(leaf: Any) -> list[Array]:
    """What a tensor keeps its numbers in."""
    if isinstance(leaf, Tensor) and (leaf.is_nested or leaf.layout is not torch.strided):
        names = _PARTS.get(leaf.layout, ("values",) if leaf.is_nested else ())
        return [getattr(leaf, name)() for name in names]
    return [leaf] if is_array(leaf) else []


def _span(array: Array) -> tuple[int, int] | None:
    """First address and the one after the last; None where there is no memory to look at."""
    if isinstance(array, np.ndarray):
        if array.size == 0 or array.dtype.hasobject:
            return None
        start, strides, itemsize = array.__array_interface__["data"][0], array.strides, array.itemsize
    else:
        if array.numel() == 0 or array.device.type == "meta":
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
    """Return what tells the content from another.

    On the host a number that needs no memory, on an accelerator the sample itself, so that nothing waits for it.
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
