"""Of which terms a script adds up the loss that it calls `backward` on, and what each is multiplied and divided by."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

DIVISIONS = ("__truediv__", "__itruediv__", "div", "div_", "true_divide", "divide")
SUMS = ("__add__", "__radd__", "__iadd__", "add", "add_", "__sub__", "__rsub__", "__isub__", "sub", "sub_", "rsub")
PRODUCTS = ("__mul__", "__rmul__", "__imul__", "mul", "mul_", "multiply")
SAME = ("neg", "__neg__", "mean", "sum", "float", "double", "to", "clone", "squeeze")
TERMS = "_tightgrad_terms"
Term = tuple[float, tuple[float, ...]]
"""What a term is multiplied by, and what it is divided by, in order."""
Terms = frozenset[Term]
ONE: Terms = frozenset({(1.0, ())})


def terms_of(loss: Any) -> Terms:
    """The terms of a scalar; one, if nothing is known of it."""
    found: Terms = getattr(loss, TERMS, ONE)
    return found


def follow(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    """Write down the terms of a scalar that a function of torch has computed."""
    if not is_loss(result) or not args:
        return
    if name in DIVISIONS and is_loss(args[0]):
        divisor = _number(args[1] if len(args) > 1 else kwargs.get("other"))
        found = frozenset((factor, (*by, divisor)) for factor, by in terms_of(args[0]))
    elif name in PRODUCTS and len(args) > 1:
        losses = [one for one in args[:2] if is_loss(one)]
        if len(losses) != 1:
            return
        times = _number(args[0] if losses[0] is args[1] else args[1])
        found = frozenset((factor * times, by) for factor, by in terms_of(losses[0]) if times)
    elif name in SUMS and len(args) > 1:
        times = _number(kwargs.get("alpha", 1.0))
        parts = [terms_of(one) for one in args[:1] if is_loss(one)]
        parts += [frozenset((factor * times, by) for factor, by in terms_of(one)) for one in args[1:2] if is_loss(one)]
        found = frozenset().union(*parts)
    elif name in SAME and is_loss(args[0]):
        found = terms_of(args[0])
    else:
        return
    setattr(result, TERMS, found)


def begin(loss: Tensor) -> None:
    """From here on a scalar is one term, whatever it was computed of."""
    setattr(loss, TERMS, ONE)


def is_loss(value: Any) -> bool:
    """Whether this is one number with a gradient."""
    return isinstance(value, Tensor) and not value.dim() and value.requires_grad


def _number(value: Any) -> float:
    """What a term is multiplied or divided by; 1 if it is no number that is known."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.requires_grad:
        return float(value)
    return 1.0
