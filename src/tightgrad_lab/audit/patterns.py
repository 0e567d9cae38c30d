"""What gives micro-batches of one window different weights by their place, and terms that are not divided with them."""

from collections.abc import Sequence

from tightgrad_lab.audit.terms import Term

LEAST = 5e-3
EXACT = 1e-6


def named(counts: Sequence[float], usual: int) -> str:
    """What makes micro-batches count this, in words; empty if it is nothing that is known."""
    largest = max(counts, default=0.0)
    if usual < 2 or len(counts) != usual or min(counts) <= 0 or min(counts) >= (1 - LEAST) * largest:
        return ""
    pattern = [one / largest for one in counts]
    small = [abs(one * usual - 1) <= LEAST for one in pattern]
    if all(is_small or abs(one - 1) <= LEAST for one, is_small in zip(pattern, small, strict=True)):
        which = "only the last one is" if sum(small) == 1 and small[-1] else f"{sum(small)} of {usual} are"
        return f"{which} divided by {usual}"
    if usual > 2 and all(abs(one * place - 1) <= LEAST for place, one in enumerate(pattern, start=1)):
        return "each is divided by its own number in the window (1, 2, 3, ...)"
    return ""


def undivided(terms: Sequence[Term], usual: int, *, window: bool, scale: float = 1.0) -> list[float]:
    """Factors of a loss's terms that nothing divides, beside one that is divided.

    Args:
        terms: of the loss of one micro-batch.
        usual: micro-batches of a window.
        window: whether a division by anything is one by what the window has.
        scale: the loss scale that the factors have in them.
    """
    factors = [(abs(factor) / scale, divisors) for factor, divisors in terms]
    alone = [factor for factor, divisors in factors if not divisors and abs(factor * usual - 1) > EXACT]
    divided = any(usual in divisors or (divisors and window) for _, divisors in factors)
    divided |= window and len(alone) < len(factors)
    return [float(f"{factor:.9g}") for factor in alone] if divided else []
