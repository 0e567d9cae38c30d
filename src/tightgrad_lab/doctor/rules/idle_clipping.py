"""The bound is so high that it has never acted, and is far above every norm: it protects from nothing."""

from dataclasses import replace

import tightgrad as tg
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History
from tightgrad_lab.doctor.numbers import quantile, rounded
from tightgrad_lab.doctor.rules.exploding_norms import quiet_norms

PROBLEM = "idle_clipping"
LEAST_STEPS = 100
FAR_ABOVE = 10.0
MARGIN = 1.5


def check(history: History) -> Finding | None:
    """No step was clipped, and the bound, if it is known, is far above the largest norm."""
    steps, coefs = history.series("clip_coef")
    if len(coefs) < LEAST_STEPS or any(coef < 1 for coef in coefs):
        return None
    _, norms = history.series("grad_norm")
    bound = getattr(history.plan.clip, "max_norm", None) if history.plan else None
    quiet = quiet_norms(history)
    if not quiet or (bound is not None and bound < FAR_ABOVE * max(quiet)):
        return None
    better = rounded(MARGIN * quantile(quiet, 0.95))
    known = "" if bound is None else f"; the bound is {bound:g}"
    evidence = f"none of {len(coefs)} steps was clipped{known}; the largest norm was {max(norms):.3g}."
    plan = replace(history.plan or tg.Plan(), clip=tg.clip.GlobalNorm(better))
    cure = (
        f"clip at {MARGIN:g} times the norm that 19 quiet steps out of 20 stay below, so that only outliers are "
        f"clipped: GlobalNorm({better:g}); or leave the clip out."
    )
    return Finding(PROBLEM, evidence, cure, steps[0], plan)
