"""Torch's cross entropies in a loss: what they were averaged over, and whether they compare samples.

A loss may compare each sample with every other, as InfoNCE, CLIP and NT-Xent do: then the scores of a cross entropy are
a product of two tensors neither of which is a parameter. Either a tensor was multiplied with itself, as in NT-Xent, or
there are as many classes as samples and the targets say which sample belongs to which. A mask over the samples' own
scores makes no difference. Losses that are no cross entropy of torch's, such as one over exp() written by hand, are not
seen.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightgrad.accumulate.loss_graph.terms import (
    MEAN,
    SUM,
    VIEWS,
    Term,
    following,
    inside,
    is_parameter,
    saved,
    saved_number,
    terms,
    without_views,
)

FEWEST = 4  # samples; a batch of two whose labels are 0 and 1 is common
_DEEP = 10
_MATRIX_PRODUCTS = ("MmBackward0", "BmmBackward0")
ON_THE_WAY = (
    *VIEWS,
    "MulBackward0",
    "DivBackward0",
    "AddBackward0",
    "SubBackward0",
    "LogSoftmaxBackward0",
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


def cross_entropies(loss: Tensor) -> Iterator[CrossEntropy]:
    """Yield torch's cross entropies that the loss consists of; none of those whose saved values would have to be
    recomputed.

    NllLossBackward0 and NllLoss2DBackward0 have had their saved values under these names since torch 1.9.
    """
    for term in terms(loss):
        for function in inside(term):
            if hasattr(function, "_raw_saved_total_weight"):
                yield _read(term if function is term.function else Term(function, None, term.rounding))


def _read(term: Term) -> CrossEntropy:
    """Divisors of several elements (reduction="none") are not read: a mean over them is no mean over labels."""
    function, scale, rounding = term.function, term.scale, term.rounding
    reduction, total = function._saved_reduction, saved_number(function, "total_weight")
    divisors: tuple[float, ...] = ()
    if reduction in (MEAN, SUM) and isinstance(total, Tensor) and scale is not None:
        is_mean = reduction == MEAN
        divided = math.prod(factor.number for factor in scale if factor.divides)
        multiplied = math.prod(factor.number for factor in scale if not factor.divides)
        base = float(total) if is_mean else 1.0
        choices = tuple(dict.fromkeys((base, base * divided, base * divided / multiplied)))
        divisors = choices if is_mean or divided == 1 else choices[1:]
        rounding = max(rounding, torch.finfo(total.dtype).eps)
    return CrossEntropy(function, reduction, divisors, rounding)


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
    one, other = (without_views(function) for function, _ in product.next_functions)
    if one is not None and one is other:
        return product.name() == "MmBackward0" and bool(product._saved_self_sym_sizes[0] == target.numel())
    if is_parameter(one) or is_parameter(other):
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
    if node.name() not in ON_THE_WAY or not deep:
        return None
    return next((found for child in following(node) if (found := _product(child, deep - 1)) is not None), None)
