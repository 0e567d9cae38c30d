"""The bound is so low that it, not the gradient, sets the length of every step: learning stops.

Clipping most steps a little is common and harmless; this is about factors that are small at nearly every step.
"""

from dataclasses import replace
from statistics import median
from typing import NamedTuple

import tightgrad as tg
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History
from tightgrad_lab.doctor.numbers import quantile, rounded

PROBLEM = "over_clipping"
LEAST_STEPS = 20
NEARLY_ALL = 0.95
SMALL_COEF = 0.1


class Clipped(NamedTuple):
    """How steps are clipped: the share of those that are, the median factor of all, and the first that is."""

    rate: float
    middle: float
    first: int


def nearly_always(history: History) -> Clipped | None:
    """How steps are clipped, where nearly all of them are; None elsewhere."""
    steps, coefs = history.series("clip_coef")
    clipped = [step for step, coef in zip(steps, coefs, strict=True) if coef < 1]
    if len(coefs) < LEAST_STEPS or len(clipped) < NEARLY_ALL * len(coefs):
        return None
    return Clipped(len(clipped) / len(coefs), median(coefs), clipped[0])


def check(history: History) -> Finding | None:
    """Nearly all steps are clipped, to less than a tenth in the middle."""
    found = nearly_always(history)
    if found is None or found.middle > SMALL_COEF:
        return None
    _, norms = history.series("grad_norm")
    bound = rounded(quantile(norms, 0.9)) if norms else None
    first, number = found.first, len(history.series("clip_coef")[1])
    evidence = (
        f"{found.rate:.0%} of {number} steps were clipped; the step taken was {found.middle:.2g} of the gradient "
        "(median)"
    )
    _, losses = history.series("loss")
    if len(losses) >= LEAST_STEPS:
        begin, end = median(losses[: LEAST_STEPS // 2]), median(losses[-LEAST_STEPS // 2 :])
        evidence += f"; the loss went from {begin:.3g} to {end:.3g}"
    if bound is None:
        return Finding(PROBLEM, f"{evidence}.", "raise the bound of the clip to the usual norm of the gradient.", first)
    plan = replace(history.plan or tg.Plan(), clip=tg.clip.GlobalNorm(bound))
    cure = f"clip at the 90th-percentile norm: GlobalNorm({bound:g})."
    return Finding(PROBLEM, f"{evidence}; norms are {median(norms):.3g} (median).", cure, first, plan)
