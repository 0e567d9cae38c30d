"""Compares the weight of a micro-batch with what its loss was divided by, where autograd knows that.

Torch's cross entropy keeps the sum of the weights of the labels that it has averaged over: without those that it
ignores, and with class weights, which no batch shows. Weights have to be in proportion to it. Cross entropies are
looked for at the end of the graph, below sums of several terms and below products with numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightgrad.core.notices import warn

LOOKS = 16  # micro-batches that are looked at: each look waits for the device
TOLERANCE = 1e-3
_MEAN, _SUM = 1, 2  # torch's numbers for reduction="mean" and "sum"
_MOST_NODES = 32
_STACK = 6  # the user's line, above backward() and what it calls
# Names of autograd's nodes, the same in torch 2.9 to 2.14; under other names nothing is found.
_SUMS = ("AddBackward0", "SubBackward0", "NegBackward0", "ToCopyBackward0")
_PRODUCTS = ("MulBackward0", "MulBackward1", "DivBackward0", "DivBackward1")


@dataclass(frozen=True)
class Seen:
    """What the cross entropies of a loss may have been averaged over, and the weight of its micro-batch.

    Attributes:
        divisors: each cross entropy has several where it was multiplied: a factor may be part of the average, or of
            what is averaged.
        weight: of the micro-batch.
        rounding: of what divisors were computed in.
        is_plain: whether the loss is one mean, and nothing more.
    """

    divisors: tuple[float, ...]
    weight: float
    rounding: float
    is_plain: bool


class DenominatorCheck:
    """Looks at the first micro-batches after `attach`, and warns once."""

    def __init__(self) -> None:
        self._looks = LOOKS
        self._lone: Seen | None = None

    def compare(self, loss: Tensor, weight: float, first: Seen | None, *, total: float) -> Seen | None:
        """Compare one micro-batch with the first of its window, or of the window before if each has one.

        Args:
            loss: the mean loss of the micro-batch.
            weight: what the micro-batch counts, above 0.
            first: what was returned for the micro-batch before; None at the first.
            total: what the window counts on all ranks; a micro-batch that is all of it needs no proportion.

        Returns:
            What the next micro-batch of this window is to be compared with.
        """
        if not self._looks or weight >= total:
            return first
        self._looks -= 1
        terms = list(_terms(loss))
        if not terms:
            return first
        is_plain = terms[0].function is loss.grad_fn
        if is_plain and terms[0].reduction == _SUM and weight != 1:
            self._warn(
                f'the loss is a sum (cross entropy with reduction="sum") of a micro-batch that weighs {weight:.6g}, '
                'and loss_reduction="mean" takes it for a mean: write Accumulate(loss_reduction="sum"), or let the '
                "loss be a mean."
            )
            return first
        divisors = tuple(divisor for term in terms for divisor in term.divisors)
        seen = Seen(divisors, weight, max(term.rounding for term in terms), is_plain and terms[0].reduction == _MEAN)
        other, self._lone = first or self._lone, None if first else seen
        if other is not None and _differ(other, seen) and (first is not None or _can_tell(other, seen)):
            self._warn(
                f"the loss of one micro-batch was averaged over {other.divisors[0]:.6g} and its weight is "
                f"{other.weight:.6g}; that of another over {divisors[0]:.6g}, and its weight is {weight:.6g}. Weights "
                "have to be in proportion to what losses are averaged over, or the gradient is not that of one big "
                'batch. Pass attach(..., weight=...): `lambda batch: (batch["labels"] != -100).sum()` for cross '
                'entropy, `(batch["labels"][:, 1:] != -100).sum()` where the model shifts its labels, '
                '`class_weights[batch["labels"]].sum()` with class weights.'
            )
        return first or seen

    def look_at_sum(self, loss: Tensor, weight: float) -> None:
        """Look at a loss that the plan takes for a sum: it may be a mean."""
        if not self._looks:
            return
        self._looks -= 1
        term = next(_terms(loss), None)
        if term is None or term.function is not loss.grad_fn or term.reduction != _MEAN:
            return
        if weight != 1 and term.divisors[0] != 1:
            self._warn(
                f"the loss is a mean (cross entropy averaged over {term.divisors[0]:.6g}) of a micro-batch that weighs "
                f'{weight:.6g}, and loss_reduction="sum" takes it for a sum: write '
                'Accumulate(loss_reduction="mean"), or let the loss be a sum.'
            )

    def _warn(self, message: str) -> None:
        self._looks = 0
        warn(message, _STACK + 1)


def _differ(one: Seen, other: Seen) -> bool:
    """Whether no cross entropy was averaged in proportion to the weights."""
    if len(one.divisors) != len(other.divisors):
        return False
    tolerance = max(TOLERANCE, 4 * one.rounding, 4 * other.rounding)
    for divisor, there in zip(one.divisors, other.divisors, strict=True):
        products = divisor * other.weight, there * one.weight
        if abs(products[0] - products[1]) <= tolerance * max(products):
            return False
    return True


def _can_tell(one: Seen, other: Seen) -> bool:
    """Whether two windows tell that ranks differ within one.

    Whole numbers of labels a sample may differ from window to window, and be the same on all ranks.
    """
    are_whole = all((seen.divisors[0] / seen.weight).is_integer() for seen in (one, other))
    return one.is_plain and other.is_plain and not are_whole


@dataclass(frozen=True)
class _Term:
    function: Any
    reduction: int
    divisors: tuple[float, ...]
    rounding: float


def _terms(loss: Tensor) -> Iterator[_Term]:
    """Torch's cross entropies that the loss consists of; none of those whose saved values would have to be recomputed.

    NllLossBackward0 and NllLoss2DBackward0 have had their saved values under these names since torch 1.9.
    """
    if loss.grad_fn is None:
        return
    nodes: list[tuple[Any, float, float, float]] = [(loss.grad_fn, 1.0, 1.0, torch.finfo(loss.dtype).eps)]
    for _ in range(_MOST_NODES):
        if not nodes:
            return
        function, divided, multiplied, rounding = nodes.pop()
        name = type(function).__name__
        below = [child for child, _ in getattr(function, "next_functions", ())]
        if hasattr(function, "_raw_saved_total_weight") and function._saved_reduction in (_MEAN, _SUM):
            total = _saved(function, "total_weight")
            if isinstance(total, Tensor):
                is_mean = function._saved_reduction == _MEAN
                base = float(total) if is_mean else 1.0
                choices = dict.fromkeys((base, base * divided, base * divided / multiplied))
                divisors = tuple(choices) if is_mean or divided == 1 else tuple(choices)[1:]
                rounding = max(rounding, torch.finfo(total.dtype).eps)
                yield _Term(function, function._saved_reduction, divisors, rounding)
        elif name in _SUMS:
            nodes += [(child, divided, multiplied, rounding) for child in reversed(below) if child is not None]
        elif name in _PRODUCTS and sum(child is not None for child in below) == 1:
            child = next(child for child in below if child is not None)
            is_product, is_first = name.startswith("Mul"), child is below[0]
            factor = _saved(function, "other" if is_first else "self") if is_product or is_first else None
            number = abs(float(factor)) if isinstance(factor, Tensor | float | int) else 0.0
            if not 0.0 < number < float("inf"):
                continue
            if isinstance(factor, Tensor) and factor.is_floating_point():
                rounding = max(rounding, torch.finfo(factor.dtype).eps)
            of_product, of_quotient = (number, 1.0) if is_product else (1.0, number)
            nodes.append((child, divided * of_quotient, multiplied * of_product, rounding))


def _saved(function: Any, name: str) -> Any:
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
