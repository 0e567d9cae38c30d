"""Losses of torch, computed target by target, so that a hook sees what the script makes each target count."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tightgrad_lab.audit.script.records import LossCall
from tightgrad_lab.audit.script.sequences import Facts
from tightgrad_lab.audit.terms import begin

Seen = Callable[[str, Tensor, Tensor | None, bool], None]
"""Told of a loss: its function, the targets' losses, which targets are not ignored (None: all), and whether the script
itself reduces them."""

BY_ELEMENT = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "gaussian_nll_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
)
BY_CLASS = ("cross_entropy", "nll_loss")
FUNCTIONS = (*BY_CLASS, *BY_ELEMENT, "ctc_loss")


Look = Callable[[dict[str, Any]], None]
"""Told of a loss's arguments, by name, before that."""


def install(seen: Seen, look: Look) -> None:
    """Replace the losses of `torch.nn.functional`; those of `torch.nn` call them. Before anything else is imported."""
    for name in FUNCTIONS:
        original = getattr(F, name)
        reduce = _by_class if name in BY_CLASS else _ctc if name == "ctc_loss" else _by_element
        setattr(F, name, _wrapped(name, original, reduce, seen, look))


def _wrapped(
    name: str,
    original: Callable[..., Tensor],
    reduce: Callable[..., Tensor],
    seen: Seen,
    look: Look = lambda asked: None,
) -> Any:
    signature = inspect.signature(original)
    busy = False  # a mode of torch makes the original call itself by its name, which is this one's

    def plain(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal busy
        busy = True
        try:
            return original(*args, **kwargs)
        finally:
            busy = False

    @functools.wraps(original)
    def loss(*args: Any, **kwargs: Any) -> Tensor:
        if busy:
            return original(*args, **kwargs)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return plain(*args, **kwargs)
        bound.apply_defaults()
        asked = bound.arguments
        legacy = asked.get("size_average") is not None or asked.get("reduce") is not None
        predicted = asked["input" if "input" in asked else "log_probs"]
        if legacy or not torch.is_grad_enabled() or not predicted.requires_grad:
            return plain(*args, **kwargs)
        look(asked)
        each = plain(**{**asked, "reduction": "none"})
        if not each.requires_grad:
            return plain(*args, **kwargs)
        found = reduce(each, asked, functools.partial(seen, name))
        begin(found)
        return found

    return loss


def _by_class(each: Tensor, asked: dict[str, Any], seen: Callable[[Tensor, Tensor | None, bool], None]) -> Tensor:
    target = asked["target"]
    valid = None if target.is_floating_point() else target != asked["ignore_index"]
    if asked["reduction"] == "mean" and valid is not None:
        weight = asked["weight"]
        total = valid.sum() if weight is None else (weight[target * valid] * valid).sum()
        seen(each, valid, False)
        if not total:  # torch gives NaN with a gradient of 0
            return each.sum() * 0 + torch.nan
        return _in_float32(each, lambda one: one.sum() / total)
    seen(each, valid, asked["reduction"] == "none")
    return _reduced(each, asked["reduction"])


def _by_element(each: Tensor, asked: dict[str, Any], seen: Callable[[Tensor, Tensor | None, bool], None]) -> Tensor:
    seen(each, None, False)
    if asked["reduction"] == "batchmean":
        return _in_float32(each, lambda one: one.sum() / torch.tensor(asked["input"].shape[0]))
    return _reduced(each, asked["reduction"])


def _ctc(each: Tensor, asked: dict[str, Any], seen: Callable[[Tensor, Tensor | None, bool], None]) -> Tensor:
    if asked["reduction"] == "mean":
        lengths = torch.as_tensor(asked["target_lengths"], device=each.device).clamp_min(1)
        each = each / lengths
    seen(each, None, False)
    return _reduced(each, asked["reduction"])


def _reduced(each: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return each
    return _in_float32(each, torch.mean if reduction == "mean" else torch.sum)


def _in_float32(each: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """As torch's kernels reduce: no coarser than float32, then rounded."""
    return reduce(each if each.dtype == torch.float64 else each.float()).to(each.dtype)


def call_of(
    site: str,
    function: str,
    ordinal: int,
    coefficient: Tensor,
    valid: Tensor | None,
    own_reduction: bool,
    facts: Facts,
) -> LossCall:
    """What each target's loss counts in the loss of a backward."""
    flat = coefficient.reshape(-1).double()
    chosen = torch.ones_like(flat, dtype=torch.bool) if valid is None else valid.reshape(-1)
    counted = chosen & (flat != 0)
    own = flat[counted]
    empty = not own.numel()
    left = ~chosen & own_reduction
    return LossCall(
        site,
        function,
        ordinal,
        int(own.numel()),
        0.0 if empty else float(own.min()),
        0.0 if empty else float(own.max()),
        float(own.sum()),
        float(flat.sum()),
        int((left & (flat != 0)).sum()),
        int((left & (flat == 0)).sum()),
        torch.finfo(coefficient.dtype).eps,
        facts.count(facts.padding, counted),
        facts.count(facts.aside, counted),
        facts.lag,
        facts.causal,
        facts.print,
    )
