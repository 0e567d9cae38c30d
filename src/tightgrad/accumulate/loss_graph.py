"""Reads the end of a loss's graph: which cross entropies it is made of, and what they were divided by.

Torch's cross entropies are looked for below sums of several terms, below products with numbers and below means over a
few terms. Names of autograd's nodes are the same in torch 2.9 to 2.14; under other names nothing is found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MEAN, SUM = 1, 2  # torch's numbers for reduction="mean" and "sum"
_MOST_NODES = 32
_SUMS = ("AddBackward0", "SubBackward0", "NegBackward0", "ToCopyBackward0")
_PRODUCTS = ("MulBackward0", "MulBackward1", "DivBackward0", "DivBackward1")
_OF_SEVERAL = ("StackBackward0", "CatBackward0", "MeanBackward0", "SumBackward0", "UnsqueezeBackward0")
_MEANS = ("MeanBackward0", "MeanBackward1")


@dataclass(frozen=True)
class CrossEntropy:
    """Holds one cross entropy of a loss.

    Attributes:
        function: its node.
        reduction: torch's number.
        divisors: what it may have been averaged over: several where it was multiplied, since a factor may be part of
            the average, or of what is averaged; none where that cannot be told.
        rounding: of what divisors were computed in.
    """

    function: Any
    reduction: int
    divisors: tuple[float, ...]
    rounding: float


@dataclass(frozen=True)
class _Below:
    """A node on the way down, and the numbers by which what is below was divided and multiplied; None: not known."""

    function: Any
    scale: tuple[float, float] | None
    rounding: float


def cross_entropies(loss: Tensor) -> Iterator[CrossEntropy]:
    """Yield torch's cross entropies that the loss consists of; none of those whose saved values would have to be
    recomputed.

    NllLossBackward0 and NllLoss2DBackward0 have had their saved values under these names since torch 1.9.
    """
    if loss.grad_fn is None:
        return
    nodes = [_Below(loss.grad_fn, (1.0, 1.0), torch.finfo(loss.dtype).eps)]
    for _ in range(_MOST_NODES):
        if not nodes:
            return
        here = nodes.pop()
        if hasattr(here.function, "_raw_saved_total_weight"):
            yield from _read(here)
        else:
            nodes += reversed(list(_children(here)))


def _read(here: _Below) -> Iterator[CrossEntropy]:
    """Divisors of several elements (reduction="none") are not read: a mean over them is no mean over labels."""
    reduction, total = here.function._saved_reduction, _saved_number(here.function, "total_weight")
    divisors: tuple[float, ...] = ()
    rounding = here.rounding
    if reduction in (MEAN, SUM) and isinstance(total, Tensor) and here.scale is not None:
        is_mean, (divided, multiplied) = reduction == MEAN, here.scale
        base = float(total) if is_mean else 1.0
        choices = tuple(dict.fromkeys((base, base * divided, base * divided / multiplied)))
        divisors = choices if is_mean or divided == 1 else choices[1:]
        rounding = max(rounding, torch.finfo(total.dtype).eps)
    yield CrossEntropy(here.function, reduction, divisors, rounding)


def _children(here: _Below) -> Iterator[_Below]:
    name = type(here.function).__name__
    below = [child for child, _ in getattr(here.function, "next_functions", ())]
    if name in _SUMS:
        yield from (_Below(child, here.scale, here.rounding) for child in below if child is not None)
    elif name in _OF_SEVERAL:
        yield from (_Below(child, None, here.rounding) for child in below if child is not None)
    elif name in _PRODUCTS:
        factor = _factor(here.function, name)
        number = abs(float(factor)) if factor is not None else 0.0
        if not 0.0 < number < float("inf"):  # a factor with a gradient of its own, or one for each sample
            yield from (_Below(child, None, here.rounding) for child in below if child is not None)
            return
        rounding = here.rounding
        if isinstance(factor, Tensor) and factor.is_floating_point():
            rounding = max(rounding, torch.finfo(factor.dtype).eps)
        scale = here.scale
        if scale is not None:
            divided, multiplied = scale
            scale = (divided, multiplied * number) if name.startswith("Mul") else (divided * number, multiplied)
        yield from (_Below(child, scale, rounding) for child in below if child is not None)


def _factor(function: Any, name: str) -> Tensor | float | int | None:
    """The number that the only other factor was multiplied with, or divided by; None if there is no such number."""
    below = [child for child, _ in function.next_functions]
    if sum(child is not None for child in below) != 1:
        return None
    is_first = below[0] is not None
    if not is_first and not name.startswith("Mul"):
        return None
    factor = _saved_number(function, "other" if is_first else "self")
    return factor if isinstance(factor, Tensor | float | int) else None


def divided_mean(loss: Tensor) -> float | None:
    """Return what the loss was divided by in its last operation, if what was divided is one mean of torch's and no sum
    of several terms; else None.
    """
    function: Any = loss.grad_fn
    while function is not None and function.name() == "ToCopyBackward0":
        function = next(iter(following(function)), None)
    if function is None or function.name() != "DivBackward0":
        return None
    by, below = _factor(function, "DivBackward0"), next(iter(following(function)), None)
    while below is not None and below.name() == "ToCopyBackward0":
        below = next(iter(following(below)), None)
    is_mean = below is not None and (below.name() in _MEANS or getattr(below, "_saved_reduction", None) == MEAN)
    return float(by) if is_mean and by is not None else None


def following(node: Any) -> list[Any]:
    """Return the nodes that a node passes gradients on to."""
    return [] if node is None else [function for function, _ in node.next_functions if function is not None]


def _saved_number(function: Any, name: str) -> Any:
    """A number that a node has saved; None where there is none to be had."""
    value = saved(function, name)
    return None if isinstance(value, Tensor) and value.numel() != 1 else value


def saved(function: Any, name: str) -> Any:
    """Return a value that a node has saved; None where there is none to be had without running a forward again."""
    raw = getattr(function, f"_raw_saved_{name}", None)
    try:
        if raw is not None:
            # Refused where hooks are set already: a look would run a checkpointed forward again.
            raw.register_hooks(_as_it_is, _as_it_is)
        value = getattr(function, f"_saved_{name}")
    except (AttributeError, RuntimeError):
        return None
    return value.detach() if isinstance(value, Tensor) else value


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
