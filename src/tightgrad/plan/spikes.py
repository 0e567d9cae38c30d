"""When a gradient is finite and still so large that its step is to be left out."""

from typing import Protocol

from torch import Tensor

FEWEST_NORMS = 10
"""The median and the deviation of fewer norms say little: until then only the fixed bound holds."""

LEAST_DEVIATION = 0.01
"""Of the mean. Norms that hardly differ would make a spike of every rounding error."""


class Bounds(Protocol):
    """Says above which norm a step is a spike: a `Guard` does. None is no bound."""

    @property
    def skip_above(self) -> float | None:
        """Return the largest norm that passes."""

    @property
    def skip_above_median(self) -> float | None:
        """Return the largest multiple of the median of the last norms."""

    @property
    def skip_above_zscore(self) -> float | None:
        """Return the most standard deviations above the mean of the last norms."""


def spike(norm: float, known: Tensor, guard: Bounds) -> str | None:
    """Say which bound of the guard a norm is above; None if it is above none.

    Args:
        norm: of the gradient that would be applied.
        known: norms of the last applied steps, one dimension.
        guard: with its bounds.
    """
    bounds = {} if guard.skip_above is None else {f"{guard.skip_above:g}": guard.skip_above}
    if known.numel() >= FEWEST_NORMS and guard.skip_above_median is not None:
        median = float(known.median())
        words = f"{guard.skip_above_median:g} times the median of the last {known.numel()} steps ({median:.4g})"
        bounds[words] = guard.skip_above_median * median
    if known.numel() >= FEWEST_NORMS and guard.skip_above_zscore is not None:
        mean = float(known.mean())
        deviation = max(float(known.std()), LEAST_DEVIATION * mean)
        words = f"{guard.skip_above_zscore:g} standard deviations above the mean of the last {known.numel()} steps"
        bounds[f"{words} ({mean:.4g}, deviation {deviation:.4g})"] = mean + guard.skip_above_zscore * deviation
    return next((words for words, bound in bounds.items() if norm > bound), None)
