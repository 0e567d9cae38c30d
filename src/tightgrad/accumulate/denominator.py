"""Compares the weight of a micro-batch with what its loss was divided by, where autograd knows that.

Torch's cross entropy keeps the sum of the weights of the labels that it has averaged over: without those that it
ignores, and with class weights, which no batch shows. Weights have to be in proportion to it. Cross entropies are
looked for at the end of the graph, below sums of several terms and below products with numbers; and so are sums over
the samples that are not divided by their number, or by that of the whole window, and means that are taken for sums.
"""

from dataclasses import dataclass
from math import inf

from torch import Tensor

from tightgrad.accumulate.loss_graph.cross_entropy import cross_entropies
from tightgrad.accumulate.loss_graph.over_samples import is_divided, is_of_parameters, is_sum_over, over_samples
from tightgrad.accumulate.loss_graph.terms import MEAN, SUM, terms
from tightgrad.core.notices import warn

LOOKS = 16  # micro-batches that are looked at: each look waits for the device
TOLERANCE = 1e-3
_STACK = 6  # the user's line, above backward() and what it calls


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
    """Looks at the first micro-batches after `attach`, and warns once.

    Args:
        ranks: their number.
    """

    def __init__(self, ranks: int = 1) -> None:
        self._ranks, self._looks = ranks, LOOKS
        self._num_of_window = 0
        self._lone: Seen | None = None
        self._sums = list[tuple[float, float]]()  # what the last losses' sums are divided by, and the weights
        self._num_means = 0

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
        if (by_hand := self._divided_by_window(loss, weight, total)) is not None:
            self._warn(by_hand)
            return first
        entropies = [entropy for entropy in cross_entropies(loss) if entropy.divisors]
        is_plain = bool(entropies) and entropies[0].function is loss.grad_fn
        if is_plain and entropies[0].reduction == SUM and weight != 1:
            self._warn(
                f'the loss is a sum (cross entropy with reduction="sum") of a micro-batch that weighs {weight:.6g}, '
                'and loss_reduction="mean" takes it for a mean: write Accumulate(loss_reduction="sum"), or let the '
                "loss be a mean."
            )
            return first
        if (sums := self._sums_that_are_no_mean(loss, weight)) is not None:
            self._warn(sums)
        if not entropies or sums is not None:
            return first
        divisors = tuple(divisor for entropy in entropies for divisor in entropy.divisors)
        rounding = max(entropy.rounding for entropy in entropies)
        seen = Seen(divisors, weight, rounding, is_plain and entropies[0].reduction == MEAN)
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

    def _divided_by_window(self, loss: Tensor, weight: float, total: float) -> str | None:
        """Say that two losses in a row are sums that are divided by the weight of their whole window, as loops do that
        count it by hand.
        """
        choices = [one for one in (total, total / self._ranks) if abs(one / weight - 1) > TOLERANCE]
        found = terms(loss) if choices and total < inf else []
        by = next((one for one in choices for term in found if is_sum_over(term, one)), None)
        self._num_of_window = 0 if by is None else self._num_of_window + 1
        if by is None or self._num_of_window < 2:
            return None
        where = "all ranks" if by == total else "one rank"
        return (
            f"the loss of a micro-batch that weighs {weight:.6g}, or a term of it, is a sum that is divided by "
            f"{by:.6g}, the weight of the whole window on {where}, as in a loop that counts it by hand. The pipeline "
            "divides by the weight of the window itself, so the gradient would be too small: give pipe.backward (or "
            'pipe.run) the sum, undivided, and write Accumulate(loss_reduction="sum"). If the divisor has nothing to '
            "do with the window, ignore this TightGradWarning."
        )

    def _sums_that_are_no_mean(self, loss: Tensor, weight: float) -> str | None:
        """Say that the loss has a sum over the samples that is no mean. One that is divided may be a mean over any
        number, but not if that stays the same whatever the micro-batches weigh.
        """
        found = [] if weight == 1 else [over_samples(term, weight) for term in terms(loss)]
        divisor = min((one.divisor for one in found if one is not None and one.is_sum), default=None)
        if divisor is None or (self._sums and self._sums[0][0] != divisor):
            self._sums = []
            return None
        self._sums.append((divisor, weight))
        others = [other for _, other in self._sums if other != weight]
        if len(self._sums) < 2 or (divisor != 1 and (len(self._sums) < 3 or not others)):
            return None
        by = (
            "nothing divides it"
            if divisor == 1
            else f"it is divided by {divisor:.6g}, as in a micro-batch that weighs {others[0]:.6g}"
        )
        return (
            f"the loss, or a term of it, is a sum over a micro-batch that weighs {weight:.6g}, and {by}, but "
            'loss_reduction="mean" takes it for a mean. If all of the loss is a sum, write '
            'Accumulate(loss_reduction="sum"); else divide the sum by what the micro-batch weighs, as '
            ".sum() / len(batch) does. If a batch is one sample, such as an episode, pass attach(..., weight=lambda "
            "batch: 1.0)."
        )

    def look_at_sum(self, loss: Tensor, weight: float, *, total: float) -> None:
        """Look at a loss that the plan takes for a sum: it may be a mean, or be divided already.

        Args:
            loss: of the micro-batch.
            weight: what the micro-batch counts, above 0.
            total: what the window counts on all ranks.
        """
        if not self._looks or weight == 1:
            return
        self._looks -= 1
        if (by_hand := self._divided_by_window(loss, weight, total)) is not None:
            self._warn(by_hand)
            return
        entropy = next((one for one in cross_entropies(loss) if one.divisors), None)
        if entropy is not None and entropy.function is loss.grad_fn and entropy.reduction == MEAN:
            which = f"cross entropy averaged over {entropy.divisors[0]:.6g}" if entropy.divisors[0] != 1 else ""
        else:
            found = [(term, over_samples(term, weight)) for term in terms(loss)]
            is_mean = [one is not None and (not one.is_sum or is_divided(term, weight)) for term, one in found]
            others = [term for (term, _), mean in zip(found, is_mean, strict=True) if not mean]
            means = any(is_mean) and all(map(is_of_parameters, others))
            self._num_means = self._num_means + 1 if means else 0
            which = "over its samples" if self._num_means > 1 else ""  # once by chance
        if which:
            self._warn(
                f"the loss is a mean ({which}) of a micro-batch that weighs {weight:.6g}, and "
                'loss_reduction="sum" takes it for a sum: write Accumulate(loss_reduction="mean"), or make the loss '
                "a sum."
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
