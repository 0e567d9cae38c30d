"""Reads the end of a loss's graph: what it was divided by, its cross entropies, what these compare.

A loss may compare each sample with every other, as InfoNCE, CLIP and NT-Xent do: then the scores of a cross entropy are
a product of two tensors neither of which is a parameter. Either a tensor was multiplied with itself, as in NT-Xent, or
there are as many classes as samples and the targets say which sample belongs to which. A mask over the samples' own
scores makes no difference. Losses that are no cross entropy of torch's, such as one over exp() written by hand, are not
seen.

Torch's cross entropies are looked for below sums of several terms, below products with numbers and below means over a
few terms. Names of autograd's nodes are the same in torch 2.9 to 2.14; under other names nothing is found.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

MEAN, SUM = 1, 2  # torch's numbers for reduction="mean" and "sum"
_MOST_NODES = 32
_SAME = ("ToCopyBackward0", "CloneBackward0", "ViewBackward0", "SqueezeBackward0", "UnsqueezeBackward0")
_SUMS = ("AddBackward0", "SubBackward0", "NegBackward0", *_SAME)
_PRODUCTS = ("MulBackward0", "MulBackward1", "DivBackward0", "DivBackward1")
_OF_SEVERAL = ("StackBackward0", "CatBackward0", "MeanBackward0", "SumBackward0")
_MEANS = ("MeanBackward0", "MeanBackward1")
_TOTALS = ("SumBackward0", "SumBackward1")
_HAND_MADE = 4e-3  # how far a number rounded to bfloat16 may be off
FEWEST = 4  # samples; a batch of two whose labels are 0 and 1 is common
_DEEP = 10
_LEAF = "AccumulateGrad"
_MATRIX_PRODUCTS = ("MmBackward0", "BmmBackward0")
_VIEWS = ("TBackward0", "PermuteBackward0", "TransposeBackward0", "ToCopyBackward0")
_SCALED = ("MulBackward0", "DivBackward0", "AddBackward0", "SubBackward0", "LogSoftmaxBackward0")
_MASKED = (
    "MaskedFillBackward0",
    "WhereBackward0",
    "IndexPutBackward0",
    "IndexBackward0",
    "MaskedSelectBackward0",
    "torch::autograd::CopySlices",
    "CloneBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "SliceBackward0",
    "CatBackward0",
)
_ON_THE_WAY = (*_VIEWS, *_SCALED, *_MASKED)


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
    """A node on the way down, and what is below was scaled by, from above; None: not known."""

    function: Any
    scale: "tuple[_Factor, ...] | None"
    rounding: float


@dataclass(frozen=True)
class _Factor:
    number: float
    divides: bool

    @property
    def divisor(self) -> float:
        return self.number if self.divides else 1 / self.number


def cross_entropies(loss: Tensor) -> Iterator[CrossEntropy]:
    """Yield torch's cross entropies that the loss consists of; none of those whose saved values would have to be
    recomputed.

    NllLossBackward0 and NllLoss2DBackward0 have had their saved values under these names since torch 1.9.
    """
    if loss.grad_fn is None:
        return
    nodes = [_Below(loss.grad_fn, (), torch.finfo(loss.dtype).eps)]
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
        is_mean = reduction == MEAN
        divided = math.prod(factor.number for factor in here.scale if factor.divides)
        multiplied = math.prod(factor.number for factor in here.scale if not factor.divides)
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
        scale = None if here.scale is None else (*here.scale, _Factor(number, name.startswith("Div")))
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


def is_divided_by(loss: Tensor, count: int) -> bool:
    """Tell whether a loss that is a mean, or a sum of terms, was divided by `count`, as loops by hand do it.

    What may have another reason is left alone: half a loss, unless it is one mean; a constant factor on squares, whose
    half is common; and a sum of `count` terms, which is divided into their mean.
    """
    terms = [] if loss.grad_fn is None else _terms(_Below(loss.grad_fn, (), 0.0))
    shares = [_share(term.scale or (), count) for term in terms]
    if not terms or None in shares:
        return False
    by_division = all(factor.divides for share in shares for factor in share or ())
    means = [term for term in terms if _is_mean(term, count)]
    if len(terms) == 1 and means and by_division and count > 2:
        return True
    if not means or any(_has_squares(term.function) for term in terms):
        return False
    return by_division or count > 2 if len(terms) == 1 else by_division and count > 2 and len(terms) % count > 0


def _terms(here: _Below) -> list[_Below]:
    """The nodes that a loss is the sum of, each with what it was multiplied with."""
    nodes, terms = [here], list[_Below]()
    for _ in range(_MOST_NODES):
        if not nodes:
            return terms
        here = nodes.pop()
        name = here.function.name()
        below = list(_children(here)) if name in (*_SUMS, *_PRODUCTS) else []
        is_scaled = name in _SUMS or any(len(child.scale or ()) > len(here.scale or ()) for child in below)
        nodes += below if is_scaled else []
        terms += [] if is_scaled else [here]
    return []


def _share(scale: tuple[_Factor, ...], count: int) -> tuple[_Factor, ...] | None:
    """Neighbouring factors that divide by `count`; None if there are none. What a framework undoes is left out."""
    scale = _without_cancelled(scale)
    for first, end in combinations(range(len(scale) + 1), 2):
        divisor = math.prod(factor.divisor for factor in scale[first:end])
        if abs(divisor / count - 1) < _HAND_MADE:
            return scale[first:end]
    return None


def _without_cancelled(scale: tuple[_Factor, ...]) -> tuple[_Factor, ...]:
    left = list[_Factor]()
    for factor in scale:
        if left and abs(left[-1].divisor * factor.divisor - 1) < _HAND_MADE:
            left.pop()
        else:
            left.append(factor)
    return tuple(left)


def _is_mean(term: _Below, count: int) -> bool:
    """Whether a term is a mean of torch's, or a sum that was divided by a number besides `count`."""
    name, scale = term.function.name(), term.scale or ()
    if name in _MEANS or getattr(term.function, "_saved_reduction", None) == MEAN:
        return True
    is_averaged = sum(factor.divides for factor in _without_cancelled(scale)) > 1
    return name in _TOTALS and is_averaged and count not in term.function._saved_self_sym_sizes


def _has_squares(function: Any, deep: int = 5) -> bool:
    below = following(function)
    if function.name() in ("PowBackward0", "MseLossBackward0") or (len(below) == 2 and below[0] is below[1]):
        return True
    inside = function.name() in (*_ON_THE_WAY, *_MEANS, *_TOTALS, *_SUMS)
    return inside and deep > 0 and any(_has_squares(child, deep - 1) for child in below)


def following(node: Any) -> list[Any]:
    """Return the nodes that a node passes gradients on to."""
    return [] if node is None else [function for function, _ in node.next_functions if function is not None]


def parameters_of(losses: Iterable[Tensor]) -> Iterator[nn.Parameter]:
    """Yield the parameters that get a gradient from these losses, without those of a checkpointed forward."""
    nodes, seen = [loss.grad_fn for loss in losses], set[Any]()
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += following(node)
        if isinstance(leaf := getattr(node, "variable", None), nn.Parameter):
            yield leaf


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


def compares_samples(loss: Tensor) -> bool:
    """Tell whether some cross entropy that the loss is made of compares each sample with every other."""
    return any(_is_in_batch(term.function) for term in cross_entropies(loss))


def _is_in_batch(node: Any) -> bool:
    if not hasattr(node, "_raw_saved_target") or not node.name().startswith("NllLossBackward"):
        return False
    product = next((found for child in following(node) if (found := _product(child)) is not None), None)
    if product is None:
        return False
    target = saved(node, "target")
    if not isinstance(target, Tensor) or target.numel() < FEWEST:
        return False
    one, other = (_without_views(function) for function, _ in product.next_functions)
    if one is not None and one is other:
        return product.name() == "MmBackward0" and bool(product._saved_self_sym_sizes[0] == target.numel())
    if _is_parameter(one) or _is_parameter(other):
        return False
    return _pairs_samples(target, both_learn=one is not None and other is not None)


def _pairs_samples(target: Tensor, *, both_learn: bool) -> bool:
    """Whether targets say which sample belongs to which: each to the one in its place or, where samples are scored
    against themselves, to its other view, which is half a batch away or its neighbour.
    """
    own = torch.arange(target.numel(), device=target.device)
    views = [(own + len(own) // 2) % len(own), own ^ 1] if both_learn else []
    return any(torch.equal(target, expected) for expected in (own, *views))


def _product(node: Any, deep: int = _DEEP) -> Any:
    """The product of two tensors that scores come from; None if they do not come from one."""
    if node.name() in _MATRIX_PRODUCTS:
        return node
    if node.name() not in _ON_THE_WAY or not deep:
        return None
    return next((found for child in following(node) if (found := _product(child, deep - 1)) is not None), None)


def _without_views(function: Any) -> Any:
    while function is not None and function.name() in _VIEWS:
        function = next(iter(following(function)), None)
    return function


def _is_parameter(function: Any) -> bool:
    return function is not None and bool(function.name().endswith(_LEAF))
