"""One batch into pieces along its samples.

A batch's outer mapping, tuple or list holds fields. A tensor or array is cut along its first dimension; numbers, texts
and tensors without dimensions go into every piece. A list inside is either one entry a sample, and is cut itself, or
a group of fields (two views of the images), whose entries are cut; a mapping inside holds fields, or numbers and texts
for all samples. Which it is has to follow from the lengths: where both fit, or neither, nothing is cut.
"""

import copy
import itertools
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tightgrad.accumulate.batch_tree import (
    entries,
    is_array,
    is_constant,
    is_sequence,
    looks_like_samples,
    named_entries,
    odd_kind,
)
from tightgrad.core.errors import ConfigError

_MARK = "_tightgrad_repeated"  # on tensors of a batch that is run again
_WAY_OUT = 'cut it into micro-batches in the loader, and take source="loader" and on_oom="raise".'


@dataclass(frozen=True)
class _Reading:
    """One way to understand a value: what gives the samples from start to stop, whether that is less than all, and what
    can be understood in another way as well.
    """

    piece: Callable[[int, int], Any]
    cuts: bool
    doubt: str = ""


def split_batch(batch: Any, pieces: int) -> list[Any]:
    """Cut a batch into pieces of as many samples each, or one more.

    A batch of fewer samples than `pieces` gives fewer pieces.

    Raises:
        ConfigError: it does not follow from the batch where its samples are.
    """
    size, reading = _read(batch)
    count = max(1, min(pieces, size))
    edges = [size * index // count for index in range(count + 1)]
    return [reading.piece(start, stop) for start, stop in itertools.pairwise(edges)]


def two_halves(batch: Any) -> tuple[Any, Any, Any]:
    """Return a batch, without the last sample of an odd number, and both halves of it.

    Raises:
        ConfigError: it does not follow from the batch where its samples are.
    """
    size, reading = _read(batch)
    half = size // 2
    return reading.piece(0, 2 * half), reading.piece(0, half), reading.piece(half, 2 * half)


def batch_size(batch: Any) -> int:
    """Return the number of samples that `split_batch` cuts between.

    Raises:
        ConfigError: it does not follow from the batch where its samples are.
    """
    return _read(batch)[0]


def fresh(value: Any) -> Any:
    """Return a copy of a batch, for a forward that may take entries out of it or change them in place."""
    if is_array(value):
        return value.clone() if isinstance(value, Tensor) else value.copy()
    rebuilt = _rebuilder(value)
    return value if rebuilt is None else rebuilt({key: fresh(item) for _, key, item in entries(value, "")})


def repeated(batch: Any) -> Any:
    """Return a copy of a batch, to be run again without weight where a wrapper needs as many as other ranks have.

    Its tensors are known as repeated ones as long as they live: a loop that hands what it was given to the windows of a
    second model, as a GAN's does with the batches of its discriminator, would else count them there.
    """
    copied = fresh(batch)
    for tensor in _tensors(copied):
        setattr(tensor, _MARK, True)
    return copied


def is_repeated(batch: Any) -> bool:
    """Tell whether any tensor of a batch comes from `repeated`; a copy of it on another device does not tell."""
    return any(hasattr(tensor, _MARK) for tensor in _tensors(batch))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for _, _, item in entries(value, ""):
        yield from _tensors(item)


def _read(batch: Any) -> tuple[int, _Reading]:
    if looks_like_samples(batch):
        raise ConfigError(
            f"a batch cannot be split: its {len(batch)} entries are of one kind, so that they may be samples as well "
            f"as fields. Make it a mapping of named fields, or {_WAY_OUT}"
        )
    reasons: list[str] = []
    found = []
    for size in _sizes(batch):
        found += [(size, reading) for reading in _readings(batch, size, "batch", True, reasons) if reading.cuts]
    if len(found) == 1:
        return found[0]
    if found:
        sizes = " or ".join(str(size) for size in sorted({size for size, _ in found}))
        which = next((reading.doubt for _, reading in found if reading.doubt), "its lists")
        reason = f"{which} can be understood in more than one way ({sizes} samples, or fields that lists hold)"
    else:
        kind = odd_kind(batch) or type(batch).__name__
        reason = reasons[0] if reasons else f"it is a {kind}, without tensors or lists of one entry a sample"
    raise ConfigError(f"a batch cannot be split: {reason}; {_WAY_OUT}")


def _sizes(batch: Any) -> list[int]:
    """How many samples there may be: what the first field says, or what lists say if no field is a tensor."""
    found = list(_lengths(batch, is_outer=True, is_field=True))
    fields = [size for size, is_field in found if is_field]
    return fields[:1] or sorted({size for size, _ in found})


def _lengths(value: Any, *, is_outer: bool, is_field: bool) -> Iterator[tuple[int, bool]]:
    """Lengths of tensors and inner lists, and whether they are those of a field."""
    if is_array(value) and value.ndim and odd_kind(value) is None:
        yield value.shape[0], is_field
    is_list = is_sequence(value) and not is_outer
    if is_list:
        yield len(value), False
    for _, _, item in entries(value, ""):
        yield from _lengths(item, is_outer=False, is_field=is_field and not is_list)


def _readings(value: Any, size: int, path: str, top: bool, reasons: list[str]) -> list[_Reading]:
    """All ways to understand a value as part of a batch of `size` samples, or two of them; why there is none."""
    kind = odd_kind(value)
    if kind is not None:
        reasons.append(f"{path} is a {kind}")
        return []
    if is_constant(value):
        return [_Reading(lambda start, stop: value, cuts=False)]
    if is_array(value):
        if value.shape[0] == size:
            return [_Reading(lambda start, stop: value[start:stop], cuts=True)]
        reasons.append(f"one tensor has {size} samples, another ({path}) the shape {tuple(value.shape)}")
        return []
    named = named_entries(value)
    if isinstance(value, Mapping) and not top and len(value) == size > 1 and all(map(is_constant, value.values())):
        reasons.append(f"{path} has {size} entries, which may be one for each of {size} samples as well as settings")
        return []
    if named is not None:
        return _fields(value, size, path, reasons)
    if is_sequence(value):
        return _fields(value, size, path, reasons) if top or not value else _list(value, size, path, reasons)
    reasons.append(f"{path} is a {type(value).__name__}, of which it is not known whether it belongs to one sample")
    return []


def _fields(value: Any, size: int, path: str, reasons: list[str]) -> list[_Reading]:
    keys, choices = [], []
    for item_path, key, item in entries(value, path):
        keys.append(key)
        choices.append(_readings(item, size, item_path, False, reasons))
    rebuilt = _rebuilder(value)
    if rebuilt is None:
        reasons.append(f"{path} is a {type(value).__name__}, which cannot be made anew")
        return []

    def reading(chosen: tuple[_Reading, ...]) -> _Reading:
        def piece(start: int, stop: int) -> Any:
            return rebuilt(dict(zip(keys, (part.piece(start, stop) for part in chosen), strict=True)))

        return _Reading(piece, any(part.cuts for part in chosen), next((p.doubt for p in chosen if p.doubt), ""))

    return [reading(chosen) for chosen in itertools.islice(itertools.product(*choices), 2)]


def _list(value: Any, size: int, path: str, reasons: list[str]) -> list[_Reading]:
    """One entry a sample, or a group of fields."""
    fits = len(value) == size
    by_sample = _Reading(lambda start, stop: value[start:stop], cuts=True)
    if all(map(is_constant, value)) and not any(map(is_array, value)):
        is_shape = isinstance(value, tuple) and not all(isinstance(item, str | bytes) for item in value)
        if fits and not is_shape:
            return [by_sample]
        what = "a tuple of numbers, perhaps a shape" if is_shape else f"a list of {len(value)}"
        reasons.append(f"{path} is {what}, and not a list with one entry for each of {size} samples")
        return []
    inside: list[str] = []
    holds_fields = any(is_array(item) or is_sequence(item) or named_entries(item) is not None for item in value)
    groups = [group for group in _fields(value, size, path, inside) if group.cuts] if holds_fields else []
    if fits:
        return [replace(by_sample, doubt=path), *groups] if groups else [by_sample]
    if not groups:
        reasons.append(
            f"{path} is a {type(value).__name__} of {len(value)}, and not one entry for each of {size} samples"
        )
    return groups


def _rebuilder(value: Any) -> Callable[[dict[Any, Any]], Any] | None:
    """Makes a container of the same type from other entries."""
    if type(value) is dict:
        return lambda items: items
    if is_sequence(value):
        return lambda items: type(value)(items.values())
    if isinstance(value, tuple):
        return lambda items: type(value)(*items.values())
    if isinstance(value, UserDict):  # such as transformers' BatchEncoding, whose other attributes are of all samples
        return lambda items: type(value)(items)
    if isinstance(value, dict) or (isinstance(value, Mapping) and hasattr(value, "__setitem__")):
        return lambda items: _copied(value, items)
    return None


def _copied(value: Any, items: dict[Any, Any]) -> Any:
    other = copy.copy(value)
    for key, item in items.items():
        other[key] = item
    return other
