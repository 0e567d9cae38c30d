"""Means, spreads, the noise of a comparison and the effects of a 2x2x2 factorial."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from tightgrad_lab.schema import COMBINATIONS

EFFECTS = COMBINATIONS[1:]

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; the normal one beyond.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_Z95 = 1.960


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean of a quantity over seeds; `sd` is the sample standard deviation, None for a single seed."""

    mean: float
    sd: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A combination against the baseline; `noise` is the half width of the 95 % interval of the difference."""

    difference: float
    noise: float | None
    verdict: str


def spread(values: Sequence[float]) -> Spread:
    """Mean, sample standard deviation, smallest and largest."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, min(values), max(values))


def t_quantile(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    return _T95[degrees - 1] if degrees <= len(_T95) else _Z95


def share_noise(first: float, second: float, samples: int) -> float:
    """95 % half width of the difference of two shares, each counted on `samples` test samples."""
    return _Z95 * math.sqrt((first * (1 - first) + second * (1 - second)) / samples)


def compare(own: Mapping[int, float], base: Mapping[int, float], *, samples: int | None) -> Comparison:
    """Own values by seed against the baseline's, larger is better.

    Over several seeds that both have: the paired t interval. With one: the sampling error of the test set, if the
    value is a share of `samples` test samples; otherwise the noise is unknown and so is the verdict.
    """
    shared = sorted(own.keys() & base.keys())
    noise: float | None = None
    if len(shared) > 1:
        differences = [own[seed] - base[seed] for seed in shared]
        difference = fmean(differences)
        noise = t_quantile(len(shared) - 1) * stdev(differences) / math.sqrt(len(shared))
    else:
        first, second = fmean(own.values()), fmean(base.values())
        difference = first - second
        if samples and 0 <= first <= 1 and 0 <= second <= 1:
            noise = share_noise(first, second, samples)
    if noise is None:
        return Comparison(difference, None, "unknown")
    if abs(difference) <= noise:
        return Comparison(difference, noise, "within")
    return Comparison(difference, noise, "short" if difference < 0 else "ahead")


def factorial_effect(values: Mapping[str, float], effect: str, *, ratio: bool) -> float | None:
    """The contrast of a main effect ("clip") or an interaction ("clip+compress") over all eight combinations.

    A quarter of the signed sum: for a main effect the mean with the technique minus the mean without it; with
    `ratio` the same of logarithms, given back as a factor. None if a combination lacks, or a logarithm cannot exist.
    """
    if any(name not in values or (ratio and values[name] <= 0) for name in COMBINATIONS):
        return None
    total = 0.0
    for name in COMBINATIONS:
        present = name.split("+")
        sign = math.prod(1 if technique in present else -1 for technique in effect.split("+"))
        total += sign * (math.log(values[name]) if ratio else values[name])
    return math.exp(total / 4) if ratio else total / 4


def variance_ratio(ratio: float, own: int, base: int) -> tuple[float, float]:
    """The 95 % interval of a ratio of two variances that were estimated with `own` and `base` degrees of freedom."""
    return ratio / f_quantile(0.975, own, base), ratio / f_quantile(0.025, own, base)


def f_quantile(share: float, own: int, base: int) -> float:
    """Below which an F-distributed value lies with probability `share`."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_share(middle, own / 2, base / 2) < share else (low, middle)
    return base * low / (own * (1 - low))


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by the continued fraction (Press et al., Numerical Recipes, 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    total = d
    for m in range(1, 200):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            total *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return front * total / a


def fisher(first: int, first_count: int, second: int, second_count: int) -> float:
    """Fisher's exact test, one-sided: how probable it is that chance gives the second group as many as it has.

    Args:
        first: successes of the first group.
        first_count: its size.
        second: successes of the second group.
        second_count: its size.
    """
    successes, everyone = first + second, first_count + second_count
    ways = math.comb(everyone, successes)
    most = min(successes, second_count)
    return (
        sum(math.comb(second_count, k) * math.comb(first_count, successes - k) for k in range(second, most + 1)) / ways
    )
