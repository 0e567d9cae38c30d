"""What a batch counts: what the user says, or its number of samples, if the batch leaves no doubt.

A batch does not show what its loss is averaged over. Samples are taken where every tensor has one entry a sample and
what looks like labels is one number a sample, or a vector of floats of constant size. Labels a token, labels that are
left out, and samples that cannot be told apart make the user say it. What a batch cannot show, such as class weights
in the loss, stays the user's to say.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightgrad.accumulate.batch_tree import (
    Array,
    entries,
    is_array,
    is_integer,
    is_sequence,
    looks_like_samples,
    odd_kind,
)
from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.core.errors import ConfigError
from tightgrad.core.notices import warn

Number = float | int | Tensor
Weight = Callable[[Any], Number | Mapping[str, Number]]

IGNORED = -100
_LABEL = re.compile(r"label|target|(^|_)(y|tgt|trg|gt)(_|$)", re.IGNORECASE)
_MASK = re.compile(r"(^|_)masks?(_|$)", re.IGNORECASE)
_SAMPLE_WEIGHTS = re.compile(r"^((sample|loss|importance)_?weights?|weights)$", re.IGNORECASE)
_LENGTHS = re.compile(r"(^|_)(len|lens|length|lengths)(_|$)", re.IGNORECASE)
_NO_LABEL = re.compile(r"(^|_)(len|lens|length|lengths|num|size|sizes|id|ids|idx|index|indices)(_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Weighed:
    """Stands for a batch whose backward ran before a checkpoint was taken, where the loop does not fetch it again."""

    weights: Mapping[str, float]


def batch_weights(batch: Any, weight: Weight, losses: tuple[str, ...]) -> dict[str, float]:
    """Call `weight` on a batch, and check what it says.

    Raises:
        ConfigError: a weight is negative or not finite, or the keys are not the names of the losses.
    """
    value = weight(batch)
    if not isinstance(value, Mapping):
        value = dict.fromkeys(losses, value)
    if set(value) != set(losses):
        raise ConfigError(f"weight(batch) has the keys {sorted(value)}, but the plan's losses are {sorted(losses)}.")
    return {name: _checked(value[name]) for name in losses}


def _checked(weight: Number) -> float:
    try:
        value = float(weight)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
        raise ConfigError(
            f"weight(batch) gave a {type(weight).__name__}{shape}; it must give one number, what the batch's loss is "
            "averaged over, such as mask.sum()."
        ) from error
    if isinstance(weight, Tensor) and weight.dtype in LOW_PRECISION and value * torch.finfo(weight.dtype).eps >= 2:
        raise ConfigError(
            f"weight(batch) gave {value:g} in {weight.dtype}, which rounds whole numbers of this size; count in "
            "float32, such as mask.float().sum()."
        )
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"a micro-batch weighs {value}; a weight must be finite and at least 0.")
    return value


def one(batch: Any) -> float:
    """Return the weight of a batch where every batch counts the same."""
    return 1.0


def num_samples(batch: Any) -> int:
    """Return the first dimension of the first tensor in the batch, whatever the others are.

    Raises:
        ConfigError: the batch holds no tensor of at least one dimension.
    """
    for leaf in _leaves(batch, "batch"):
        if leaf.array.ndim:
            return leaf.size
    raise _no_tensor(batch)


def _no_tensor(batch: Any) -> ConfigError:
    leave_out = " Let the loader leave out batches that are None." if batch is None else ""
    return ConfigError(
        f"a batch of type {type(batch).__name__} holds no tensor to count samples by; pass "
        f"attach(..., weight=lambda batch: ...) with the number that its loss is averaged over.{leave_out}"
    )


@dataclass(frozen=True)
class _Leaf:
    """A tensor or array of a batch.

    Attributes:
        path: how one writes it in Python.
        key: of the mapping that it is in; None in a tuple or list.
        place: its number in the batch's outer tuple or list; 0 elsewhere.
        in_list: whether it is in a list within the batch.
    """

    path: str
    key: str | None
    place: int
    in_list: bool
    array: Array

    @property
    def size(self) -> int:
        return int(self.array.shape[0])

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape[1:])

    @property
    def is_one_number(self) -> bool:
        """Whether it holds one number a sample."""
        return all(size == 1 for size in self.sample_shape)

    @property
    def described(self) -> str:
        return f"{self.path} of shape {tuple(self.array.shape)}"


class DefaultWeight:
    """Counts samples, and asks the user where their number is in doubt.

    It remembers the first batch: labels whose size a sample changes from batch to batch are averaged over more than
    samples. Values of tensors on an accelerator are looked at in the first batch only, since each look waits for it.
    """

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._length: int | None = None
        self._is_first = True

    def __call__(self, batch: Any) -> int:
        """Return the number of samples.

        Raises:
            ConfigError: it does not follow from the batch that its loss is averaged over samples.
        """
        leaves = [leaf for leaf in _leaves(batch, "batch") if leaf.array.ndim]
        if not leaves:
            raise _no_tensor(batch)
        _check_samples(batch, leaves)
        self._check_length(batch)
        labels = [leaf for leaf in leaves if self._is_label(leaf)]
        for leaf in leaves:
            self._check_values(leaf, is_label=leaf in labels)
        for leaf in labels:
            if is_integer(leaf.array) and not leaf.is_one_number:
                raise _asked(f"{leaf.described} looks like labels of tokens or pixels", _for_tokens(leaf.path))
        self._check_counted_by_another(leaves, labels)
        self._check_shapes(labels or self._unlabelled(leaves))
        self._is_first = False
        return leaves[0].size

    def _looks_at(self, leaf: _Leaf) -> bool:
        """Whether values may be looked at."""
        device = leaf.array.device.type if isinstance(leaf.array, Tensor) else "cpu"
        return device == "cpu" or (self._is_first and device != "meta")

    def _is_label(self, leaf: _Leaf) -> bool:
        if leaf.key is not None and _LABEL.search(leaf.key):
            return True
        return leaf.place > 0 and (leaf.key is None or not _NO_LABEL.search(leaf.key)) and not self._is_mask(leaf)

    def _is_mask(self, leaf: _Leaf) -> bool:
        """Whether it holds zeros and ones for the entries of something else."""
        if leaf.is_one_number or not is_integer(leaf.array):
            return False
        if not self._looks_at(leaf):
            return leaf.path not in self._shapes
        return bool(((leaf.array == 0) | (leaf.array == 1)).all())

    def _check_values(self, leaf: _Leaf, *, is_label: bool) -> None:
        array = leaf.array
        if not is_integer(array) or "uint" in str(array.dtype) or not self._looks_at(leaf):
            return
        if bool((array == IGNORED).any()):
            raise _asked(f"{leaf.described} has labels of {IGNORED}, which losses leave out", _for_tokens(leaf.path))
        if is_label and leaf.is_one_number and bool((array < 0).any()) and bool(((array != 1) & (array != -1)).any()):
            raise _asked(
                f"{leaf.described} has labels below 0, which losses often leave out",
                f"`weight=lambda batch: ({leaf.path} >= 0).sum()` if yours does, `weight=lambda batch: "
                f"len({leaf.path})` if it is averaged over samples",
            )

    def _check_counted_by_another(self, leaves: list[_Leaf], labels: list[_Leaf]) -> None:
        """What says which entries of the labels count, or how much each sample, is what a loss is averaged over."""
        is_told = bool(labels) or any(leaf.is_one_number for leaf in leaves)  # else there is no more than the inputs
        for leaf in leaves:
            if leaf.key is not None and _SAMPLE_WEIGHTS.search(leaf.key):
                raise _counted_by(leaf, f"{leaf.path}.sum()", "may say how much each sample counts")
            shape = tuple(leaf.array.shape)
            others = [one for one in (labels if is_told else leaves) if one is not leaf]
            others = [one for one in others if labels or not is_integer(one.array)]
            is_mask = "bool" in str(leaf.array.dtype) or (leaf.key is not None and _MASK.search(leaf.key))
            if is_mask and len(shape) > 1 and any(tuple(o.array.shape)[: len(shape)] == shape for o in others):
                raise _counted_by(leaf, f"{leaf.path}.sum()", "looks like a mask of what is averaged over")
            named = leaf.key is not None
            padded = [one.array.shape[1] for one in others if labels and one.array.ndim > 2 - named]
            # By its values alone, in the first batch only: by chance they may fit in any.
            is_length = _LENGTHS.search(leaf.key or "") if named else self._is_first
            if not (padded and is_length and is_integer(leaf.array) and leaf.is_one_number and self._looks_at(leaf)):
                continue
            if leaf.size and int(leaf.array.min()) > 0 and 1 < int(leaf.array.max()) in padded:
                raise _counted_by(leaf, f"{leaf.path}.sum()", "looks like lengths of padded labels")

    def _check_length(self, batch: Any) -> None:
        """A list whose length changes is a list of samples."""
        if not is_sequence(batch):
            return
        if self._length is not None and self._length != len(batch):
            raise _asked(
                f"a batch is a {type(batch).__name__} of {len(batch)} entries, another one was of {self._length}: "
                "these may be samples",
                "`weight=lambda batch: len(batch)` for a list of samples",
            )
        self._length = len(batch)

    def _unlabelled(self, leaves: list[_Leaf]) -> list[_Leaf]:
        """Of a batch in which nothing is called labels, what its loss may be averaged over."""
        single = [leaf for leaf in leaves if leaf.key and leaf.is_one_number and not _NO_LABEL.search(leaf.key)]
        if single:
            return single
        for leaf in leaves:
            is_image = leaf.array.dtype is torch.uint8 and leaf.array.ndim > 2
            if is_integer(leaf.array) and not leaf.is_one_number and not is_image and not self._is_mask(leaf):
                raise _asked(
                    f"{leaf.described} looks like tokens, and nothing in the batch like one label a sample",
                    _for_tokens(leaf.path),
                )
        return leaves

    def _check_shapes(self, leaves: list[_Leaf]) -> None:
        """Nothing that a loss is averaged over may change its size a sample."""
        for leaf in leaves:
            before = self._shapes.setdefault(leaf.path, leaf.sample_shape)
            if before != leaf.sample_shape and any(size != 1 for size in (*before, *leaf.sample_shape)):
                raise _asked(
                    f"{leaf.described} has {leaf.sample_shape} a sample, but {before} in a batch before: a mean over "
                    "all its entries is no mean over samples, and perhaps samples are not its first dimension",
                    f"`weight=lambda batch: {leaf.path}.shape[1]` if samples are the second dimension, "
                    f"`weight=lambda batch: {leaf.path}.numel()` for a mean over all entries, `weight=lambda batch: "
                    f"len({leaf.path})` for a mean over samples",
                )


def _check_samples(batch: Any, leaves: list[_Leaf]) -> None:
    """Raise `ConfigError` unless all tensors agree in their first dimension, which are samples."""
    first = leaves[0]
    of_list = "`weight=lambda batch: len(batch[0])` if batch[0] is a list of samples"
    if looks_like_samples(batch):
        raise _asked(
            f"its {len(batch)} entries are of one kind, so that they may be samples as well as fields",
            "`weight=lambda batch: len(batch)` for a list of samples, `weight=lambda batch: len(batch[0])` for fields",
        )
    for leaf in leaves:
        if leaf.size != first.size:
            raise _asked(
                f"{first.described} and {leaf.described} differ in their first dimension",
                f"{of_list}, `weight=lambda batch: {first.path}.shape[1]` if samples are the second dimension",
            )
    if all(leaf.in_list for leaf in leaves):
        raise _asked(
            f"{first.described} is in a list, which may be one of samples",
            f"{of_list}, `weight=lambda batch: len({first.path})` if it is averaged over the first dimension of that",
        )


def _leaves(value: Any, path: str, key: str | None = None, place: int = 0, in_list: bool = False) -> Iterator[_Leaf]:
    kind = odd_kind(value)
    if kind is not None and not (is_array(value) and not value.is_nested):  # sparse ones have samples
        raise _asked(f"{path} is a {kind}", "`weight=lambda batch: ...` with that number")
    if is_array(value):
        yield _Leaf(path, key, place, in_list, value)
        return
    if key is not None and _LABEL.search(key) and _are_numbers(value):
        yield _Leaf(path, key, place, in_list, np.asarray(value))
        return
    is_outer = path == "batch"
    for item_path, item_key, item in entries(value, path):
        if is_sequence(value):
            yield from _leaves(item, item_path, key, item_key if is_outer else place, in_list or not is_outer)
        else:
            yield from _leaves(item, item_path, str(item_key), place, in_list)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int | float) for item in value)


def _asked(reason: str, suggestions: str) -> ConfigError:
    return ConfigError(
        f"the number of samples cannot be taken for the weight of a batch: {reason}. Tell attach() what your loss is "
        f"averaged over: {suggestions}."
    )


def _counted_by(leaf: _Leaf, count: str, looks: str) -> ConfigError:
    return _asked(
        f"{leaf.described} {looks}",
        f"`weight=lambda batch: {count}` if the loss is divided by that, `weight=lambda batch: len({leaf.path})` for a "
        "mean over samples",
    )


class FieldsCounted:
    """Warns, once, of a weight of the user's that is the number of a batch's fields: batches of different sizes weigh
    as much as they have fields.
    """

    def __init__(self) -> None:
        self._sizes: set[int] | None = set()

    def look(self, batch: Any, weight: float, stacklevel: int) -> None:
        """Look at a batch and what it weighs."""
        if self._sizes is None:
            return
        fields = [(path, item) for path, _, item in entries(batch, "batch")]
        arrays = [(path, item) for path, item in fields if is_array(item) and item.ndim and odd_kind(item) is None]
        sizes = {int(item.shape[0]) for _, item in arrays}
        if not 1 < len(fields) == weight or len(sizes) != 1 or looks_like_samples(batch):
            self._sizes = None
            return
        self._sizes |= sizes - {weight}
        if len(self._sizes) > 1:
            self._sizes = None
            warn(
                f"weight(batch) gave {weight:g}, which is how many fields a batch has, for batches of different sizes, "
                "so that all batches count the same, however many samples they have. If the loss is a mean over "
                f"samples, write weight=lambda batch: len({arrays[0][0]}), or leave weight out to count samples.",
                stacklevel + 1,
            )


def _for_tokens(path: str) -> str:
    return (
        f"`weight=lambda batch: ({path} != {IGNORED}).sum()` for a mean over labels, `weight=lambda batch: "
        f"({path}[:, 1:] != {IGNORED}).sum()` if the model shifts them itself, as causal language models of "
        f"transformers do, `weight=lambda batch: len({path})` for a mean over samples"
    )
