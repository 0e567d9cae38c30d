"""Is a loss torch's cross entropy over the scores of each sample with every other, as InfoNCE and CLIP write it?

Its graph shows it: as many classes as samples, the targets 0, 1, ..., n - 1, and scores that are a product of two
tensors neither of which is a parameter. Other ways to compare samples, such as masked NT-Xent, are not seen.
"""

from typing import Any

import torch
from torch import Tensor

from tightgrad.accumulate.denominator import saved

FEWEST = 4  # samples; a batch of two whose labels are 0 and 1 is common
_DEEP = 6
_LEAF = "AccumulateGrad"
_VIEWS = ("TBackward0", "PermuteBackward0", "TransposeBackward0", "ToCopyBackward0")
_SCALED = (*_VIEWS, "MulBackward0", "DivBackward0", "AddBackward0", "SubBackward0")


def compares_samples(loss: Tensor) -> bool:
    """Tell whether some cross entropy that the loss is made of compares each sample with every other."""
    found = [loss.grad_fn]
    for _ in range(_DEEP):
        if any(map(_is_in_batch, found)):
            return True
        found = [function for node in found for function in _next(node)]
    return False


def _next(node: Any) -> list[Any]:
    return [] if node is None else [function for function, _ in node.next_functions if function is not None]


def _is_in_batch(node: Any) -> bool:
    if node is None or not hasattr(node, "_raw_saved_target") or not node.name().startswith("NllLossBackward"):
        return False
    softmax = next(iter(_next(node)), None)
    if softmax is None or not _multiplies_samples(softmax):
        return False
    target = saved(node, "target")
    return (
        isinstance(target, Tensor)
        and target.numel() >= FEWEST
        and torch.equal(target, torch.arange(target.numel(), device=target.device))
    )


def _multiplies_samples(node: Any, deep: int = _DEEP) -> bool:
    """Whether scores come from a product of two tensors neither of which is a parameter or a view of one."""
    if node.name() in ("MmBackward0", "BmmBackward0"):
        return not any(_is_parameter(function) for function, _ in node.next_functions)
    is_scaled = node.name() in _SCALED or node.name().startswith("LogSoftmax")
    return is_scaled and deep > 0 and any(_multiplies_samples(factor, deep - 1) for factor in _next(node))


def _is_parameter(function: Any) -> bool:
    while function is not None and function.name() in _VIEWS:
        function = next(iter(_next(function)), None)
    return function is not None and function.name().endswith(_LEAF)
