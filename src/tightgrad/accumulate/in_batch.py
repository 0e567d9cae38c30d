"""Is a loss torch's cross entropy over the scores of each sample with every other, as InfoNCE and NT-Xent write it?

Its graph shows it: the scores are a product of two tensors neither of which is a parameter. Either a tensor was
multiplied with itself, as in NT-Xent, or there are as many classes as samples and the targets say which sample belongs
to which. A mask over the samples' own scores makes no difference. Losses that are no cross entropy of torch's, such as
one over exp() written by hand, are not seen.
"""

from typing import Any

import torch
from torch import Tensor

from tightgrad.accumulate.loss_graph import cross_entropies, following, saved

FEWEST = 4  # samples; a batch of two whose labels are 0 and 1 is common
_DEEP = 10
_LEAF = "AccumulateGrad"
_PRODUCTS = ("MmBackward0", "BmmBackward0")
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
    if node.name() in _PRODUCTS:
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
