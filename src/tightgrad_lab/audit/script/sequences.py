"""Targets of token sequences beside the tokens that a model is given: shifted once, twice or not, padded, masked."""

import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
ASIDE = "_tightgrad_aside"
"""Set on integer tensors: which of their elements were marked as ignored, and are not any more."""
REPLACES = ("__setitem__", "masked_fill", "masked_fill_", "where", "clamp", "clamp_", "clamp_min", "clamp_min_", "relu")
VIEWS = ("view", "reshape", "flatten", "__getitem__", "contiguous", "to", "long", "clone", "detach", "t", "transpose")
LAGS = (1, 0, 2, 3, -1)
"""How many places after an input its target stands, the right one first."""
ALL, FEW = 0.98, 0.9
LEAST = 8
"""Targets that tell something, below which nothing is said."""
INPUTS = 6
LARGEST = 1 << 20
PRINTED = 4096


@dataclass(frozen=True)
class Facts:
    """What is known of a loss's targets.

    Args:
        padding: which of them, in order, are padding; None if none are known to be.
        aside: which were marked as ignored before, and are not any more; likewise.
        lag: how many places after an input its target stands; None if they have nothing to do with each other.
        causal: whether the model is kept from seeing what comes after an input.
        print: of the targets' values.
    """

    padding: Tensor | None = None
    aside: Tensor | None = None
    lag: int | None = None
    causal: bool = False
    print: int = 0

    @staticmethod
    def count(chosen: Tensor | None, counted: Tensor) -> int:
        """How many targets that count are among the chosen ones."""
        return 0 if chosen is None or chosen.numel() != counted.numel() else int((chosen & counted).sum())


class Sequences:
    """Remembers what embeddings were given."""

    def __init__(self) -> None:
        self._inputs: deque[tuple[Tensor, int | None]] = deque(maxlen=INPUTS)
        self._causal = False

    def before(self, name: str, args: tuple[Any, ...]) -> Tensor | None:
        """Which elements are marked as ignored, before a call that may mark them otherwise."""
        if name not in REPLACES:
            return None
        for one in args:
            if isinstance(one, Tensor) and one.dtype == torch.long and one.numel() <= LARGEST:
                marked = one == IGNORED
                if marked.any():
                    return marked
        return None

    def watch(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, marked: Tensor | None
    ) -> None:
        """One call has ended."""
        if name == "embedding":
            given = args[0] if args else kwargs.get("input")
            if isinstance(given, Tensor) and given.dim() == 2 and LEAST <= given.numel() <= LARGEST:
                self._inputs.append((given.detach().clone(), kwargs.get("padding_idx")))
        elif name in ("triu", "tril") or (name == "scaled_dot_product_attention" and kwargs.get("is_causal")):
            self._causal = True
        if marked is not None:
            changed = args[0] if name == "__setitem__" else result
            if isinstance(changed, Tensor) and changed.shape == marked.shape:
                values = changed[marked]  # all replaced by one: others are given back what they were
                if values.numel() > 1 and int(values[0]) != IGNORED and bool((values == values[0]).all()):
                    setattr(changed, ASIDE, marked)
        elif name in VIEWS and args and hasattr(args[0], ASIDE) and isinstance(result, Tensor):
            chosen = [one for one in args[1:] if not isinstance(one, torch.dtype | torch.device | str)]
            aside = getattr(args[0], ASIDE)
            setattr(result, ASIDE, aside if name in ("to", "long", "contiguous") else getattr(aside, name)(*chosen))

    def facts(self, target: Any, ignore_index: int | None) -> Facts:
        """What is known of a loss's targets; `ignore_index` is None where it is none over classes."""
        if not isinstance(target, Tensor) or not 0 < target.numel() <= LARGEST:
            return Facts()
        printed = zlib.crc32(target.detach().reshape(-1)[:PRINTED].double().numpy().tobytes())
        if ignore_index is None or target.dtype != torch.long:
            return Facts(print=printed)
        aside = getattr(target, ASIDE, None)
        aside = None if aside is None or aside.numel() != target.numel() else aside.reshape(-1)
        found = Facts(None, aside, None, self._causal, printed)
        for given, padding_idx in reversed(self._inputs):
            for turned in (False, True):
                pair = _rows(given, target, turned=turned)
                if pair is None:
                    continue
                inputs, rows = pair
                padded = _padding(inputs, rows, ignore_index, padding_idx)
                lag = _lag(inputs, rows, (rows != ignore_index) & ~padded)
                padding = padded.t() if turned else padded
                if lag is not None or padded.any():
                    whole = padding.reshape(-1) if padded.any() else found.padding
                    found = Facts(whole, aside, lag if found.lag is None or lag == 1 else found.lag, *_rest(found))
                if found.lag == 1:
                    return found
        return found


def _rest(facts: Facts) -> tuple[bool, int]:
    return facts.causal, facts.print


def _rows(given: Tensor, target: Tensor, *, turned: bool) -> tuple[Tensor, Tensor] | None:
    """Inputs and targets by sequence and place; None if they are not of the same sequences."""
    inputs = given.t() if turned else given
    count, length = inputs.shape
    places, left = divmod(target.numel(), count)
    if left or not max(2, length - 2) <= places <= length:
        return None
    return inputs, target.reshape(places, count).t() if turned else target.reshape(count, places)


def _lag(inputs: Tensor, rows: Tensor, counted: Tensor) -> int | None:
    found = {}
    for lag in LAGS:
        last = min(rows.shape[1], inputs.shape[1] - lag)
        chosen = counted[:, max(0, -lag) : last]
        if int(chosen.sum()) < LEAST:
            return None
        same = (rows[:, max(0, -lag) : last] == inputs[:, max(0, lag) : last + lag])[chosen]
        found[lag] = float(same.double().mean())
    best = max(found, key=lambda lag: found[lag])
    alone = best == 1 or found[1] < FEW
    return best if found[best] >= ALL and alone else None


def _padding(inputs: Tensor, rows: Tensor, ignore_index: int, padding_idx: int | None) -> Tensor:
    """Which targets stand where the inputs are padding, at either end; without the first of each sequence's, which may
    be the mark of its end.
    """
    nothing = torch.zeros_like(rows, dtype=torch.bool)
    width = rows.shape[1]
    if width > 1 and bool((rows[:, -1] == ignore_index).all()):  # Hugging Face's shift leaves a column over
        width -= 1
    for flip in (False, True):
        turned, targets = (inputs.flip(1), rows[:, :width].flip(1)) if flip else (inputs, rows[:, :width])
        runs = _runs(turned, padding_idx)
        if runs is None:
            continue
        places = torch.arange(width - 1, -1, -1)
        inside = places < (runs[:, None] - 1)
        ends = targets[inside]
        if ends.numel() and bool((ends == ends[0]).all()):
            nothing[:, :width] = inside.flip(1) if flip else inside
            return nothing
    return nothing


def _runs(inputs: Tensor, padding_idx: int | None) -> Tensor | None:
    """Lengths of the padding at the end of each sequence; None if there is none that is sure."""
    last = inputs[:, -1:]
    runs = (inputs == last).flip(1).long().cumprod(1).sum(1)
    several = runs > 1
    if not several.any():
        return None
    value = last[several][0] if padding_idx is None else torch.tensor([padding_idx])
    runs = runs * (last[:, 0] == value)
    if padding_idx is not None:
        return runs if (runs > 1).any() else None
    elsewhere = int((inputs == value).sum()) != int(runs.sum())
    ragged = len(set(runs.tolist())) > 1
    return (
        runs if ragged and not elsewhere and int((runs > 1).sum()) > 1 and int(runs.max()) < inputs.shape[1] else None
    )
