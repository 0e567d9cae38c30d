"""The bound is so low that it, not the gradient, sets the length of every step: learning stops.

Clipping most steps a little is common and harmless; this is about factors that are small at nearly every step.
"""

from dataclasses import replace
from statistics import median

import tightgrad as tg
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History
from tightgrad_lab.doctor.numbers import quantile, rounded

PROBLEM = "over_clipping"
LEAST_STEPS = 20
NEARLY_ALL = 0.95
SMALL_COEF = 0.1


def check(history: History) -> Finding | None:
    """Nearly all steps are clipped, to less than a tenth in the middle."""
    steps, coefs = history.series("clip_coef")
    if len(coefs) < LEAST_STEPS:
        return None
    rate = sum(coef < 1 for coef in coefs) / len(coefs)
    middle = median(coefs)
    if rate < NEARLY_ALL or middle > SMALL_COEF:
        return None
    _, norms = history.series("grad_norm")
    bound = rounded(quantile(norms, 0.9)) if norms else None
    first = next(step for step, coef in zip(steps, coefs, strict=True) if coef < 1)
    evidence = (
        f"{rate:.0%} of {len(coefs)} steps were clipped; the step taken was {middle:.2g} of the gradient (median)"
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
