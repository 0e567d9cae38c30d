"""Tells whether a loop has divided a loss by the number of its micro-batches or ranks by hand."""

import math
from collections.abc import Collection
from itertools import combinations
from typing import Any

from torch import Tensor

from tightgrad.accumulate.loss_graph.cross_entropy import ON_THE_WAY
from tightgrad.accumulate.loss_graph.terms import MEAN, MEANS, SUMS, TOTALS, Factor, Term, following, terms

_HAND_MADE = 4e-3  # how far a number rounded to bfloat16 may be off


class DivisionCheck:
    """Looks at the first losses of a loop, and again where another number of micro-batches makes a window."""

    def __init__(self) -> None:
        self._looks, self._num_divided = True, 0
        self._seen: tuple[int, list[float]] | None = None

    def is_sure(self, losses: Collection[Tensor], count: int) -> bool:
        """Tell, once, whether losses are divided by `count`, the number of micro-batches in their window.

        Two losses tell that, or windows of two lengths, whatever the loss is: a factor that follows their length has no
        other reason.
        """
        if not self._looks or count < 2 or (self._seen is not None and self._seen[0] == count):
            return False
        if self._seen is None and all(is_divided_by(loss, count) for loss in losses):
            self._num_divided += 1
            self._looks = self._num_divided < 2
            return not self._looks
        found = [term for loss in losses for term in terms(loss)]
        before, now = self._seen, (count, [term.divisor / count for term in found])
        may_be = bool(found) and all(share(term.scale or (), count) for term in found) and not self._num_divided
        self._seen = now
        self._looks = may_be and before is None
        if not may_be or before is None or len(before[1]) != len(now[1]):
            return False
        return all(abs(one / other - 1) < _HAND_MADE for one, other in zip(before[1], now[1], strict=True))


class RanksCheck:
    """Looks at the first losses of a loop for the number of ranks, which loops that sum over ranks by hand divide by,
    and loops that undo a wrapper's mean multiply with.

    Args:
        ranks: their number.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks, self._looks = ranks, ranks > 1
        self._before: tuple[str, float] | None = None

    def scaled(self, losses: Collection[Tensor], count: int) -> tuple[str, float] | None:
        """Return, once, how two losses in a row are scaled, in words, and how many times too large that makes them.

        Args:
            losses: of a micro-batch.
            count: the number of micro-batches in its window.
        """
        if not self._looks or not losses:
            return None
        ranks, found = self._ranks, None
        if count > 1 and all(is_divided_by(loss, ranks * count) for loss in losses):
            found = f"divided by {ranks * count}, the number of micro-batches on all ranks", 1 / (ranks * count)
        elif all(is_divided_by(loss, ranks) for loss in losses):
            found = f"divided by {ranks}, the number of ranks", 1 / ranks
        elif ranks > 2 and all(_is_multiplied_with(loss, ranks) for loss in losses):
            found = f"multiplied with {ranks}, the number of ranks", float(ranks)
        before, self._before = self._before, found
        self._looks = found is not None and before is None
        return found if found is not None and found == before else None


def _is_multiplied_with(loss: Tensor, count: int) -> bool:
    """Tell whether a loss that is one mean was multiplied with `count`."""
    found = terms(loss)
    factors = _without_cancelled(found[0].scale or ()) if len(found) == 1 else ()
    return any(not one.divides and one.number == count for one in factors) and _is_mean(found[0], count)


def is_divided_by(loss: Tensor, count: int) -> bool:
    """Tell whether a loss that is a mean, or a sum of terms, was divided by `count`, as loops by hand do it.

    What may have another reason is left alone: half a loss, unless it is one mean; a constant factor on squares, whose
    half is common; and a sum of `count` terms, which is divided into their mean.
    """
    found = terms(loss)
    shares = [share(term.scale or (), count) for term in found]
    if not found or None in shares:
        return False
    by_division = all(factor.divides for share in shares for factor in share or ())
    means = [term for term in found if _is_mean(term, count)]
    if len(found) == 1 and means and by_division and count > 2:
        return True
    if not means or any(_has_squares(term.function) for term in found):
        return False
    return by_division or count > 2 if len(found) == 1 else by_division and count > 2 and len(found) % count > 0


def share(scale: tuple[Factor, ...], count: float, tolerance: float = _HAND_MADE) -> tuple[Factor, ...] | None:
    """Return neighbouring factors that divide by `count`; None if there are none. What a framework undoes is left
    out.
    """
    scale = _without_cancelled(scale)
    for first, end in combinations(range(len(scale) + 1), 2):
        divisor = math.prod(factor.divisor for factor in scale[first:end])
        if abs(divisor / count - 1) < tolerance:
            return scale[first:end]
    return None


def _without_cancelled(scale: tuple[Factor, ...]) -> tuple[Factor, ...]:
    left = list[Factor]()
    for factor in scale:
        if left and abs(left[-1].divisor * factor.divisor - 1) < _HAND_MADE:
            left.pop()
        else:
            left.append(factor)
    return tuple(left)


def _is_mean(term: Term, count: int) -> bool:
    """Whether a term is a mean of torch's, or a sum that was divided by a number besides `count`."""
    name, scale = term.function.name(), term.scale or ()
    if name in MEANS or getattr(term.function, "_saved_reduction", None) == MEAN:
        return True
    is_averaged = sum(factor.divides for factor in _without_cancelled(scale)) > 1
    return name in TOTALS and is_averaged and count not in term.function._saved_self_sym_sizes


def _has_squares(function: Any, deep: int = 5) -> bool:
    below = following(function)
    if function.name() in ("PowBackward0", "MseLossBackward0") or (len(below) == 2 and below[0] is below[1]):
        return True
    inside = function.name() in (*ON_THE_WAY, *MEANS, *TOTALS, *SUMS)
    return inside and deep > 0 and any(_has_squares(child, deep - 1) for child in below)
