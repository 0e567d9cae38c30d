"""How sure a ratio of step times is."""

import math
from statistics import fmean, median, variance

from tightgrad_lab.report import cells
from tightgrad_lab.report.claims.judgement import Fact, Number, Verdict
from tightgrad_lab.report.measured.files import Case, Run
from tightgrad_lab.report.measured.stats import t_quantile

BLOCKS = 8
"""A run is cut into this many stretches of steps; what slows the machine down for a while falls into few of them."""


def step_time(case: Case, combination: str) -> tuple[Verdict, dict[str, Fact]] | None:
    """A combination's step time over that of none: shorter, longer, or neither beyond its 95 % interval.

    Over several seeds the interval is that of the paired differences of logarithms; with one seed, that of the medians
    of stretches of the two runs.
    """
    ratio = cells.ratio(case, combination, "step_seconds")
    if ratio is None:
        return None
    half = _half_width(case, combination)
    low, high = ratio * math.exp(-half), ratio * math.exp(half)
    facts: dict[str, Fact] = {
        "ratio": Number(ratio, "factor"),
        "low": Number(low, "factor"),
        "high": Number(high, "factor"),
        "own": Number(cells.mean(case, combination, "step_seconds"), "seconds"),
        "base": Number(cells.mean(case, "none", "step_seconds"), "seconds"),
    }
    return ("supported" if high < 1 else "refuted"), facts


def _half_width(case: Case, combination: str) -> float:
    own, base = (case.values(name, "step_seconds") for name in (combination, "none"))
    shared = sorted(own.keys() & base.keys())
    if len(shared) > 1:
        logs = [math.log(own[seed] / base[seed]) for seed in shared]
        return t_quantile(len(logs) - 1) * math.sqrt(variance(logs) / len(logs))
    first, second = (_stretches(next(iter(case.combinations[name].values()))) for name in (combination, "none"))
    if len(first) < 2 or len(second) < 2:
        return math.inf
    spread = variance(first) / len(first) + variance(second) / len(second)
    return t_quantile(min(len(first), len(second)) - 1) * math.sqrt(spread)


def _stretches(run: Run) -> list[float]:
    """Logarithms of the median step time of each stretch, the first step left out."""
    seconds = [float(step["seconds"]) for step in run.steps[1:] if step.get("seconds")]
    size = len(seconds) // BLOCKS
    if size < 1:
        return [math.log(value) for value in seconds]
    logs = [math.log(median(seconds[i * size : (i + 1) * size])) for i in range(BLOCKS)]
    return [value - fmean(logs) for value in logs]
