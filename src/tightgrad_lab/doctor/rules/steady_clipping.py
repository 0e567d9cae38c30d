"""The bound is below nearly every norm, yet not far below: the clip is a factor of every step, which is worth knowing.

A note, nothing that is wrong: many runs are tuned like this. See over_clipping for factors that stop learning.
"""

from dataclasses import replace

import tightgrad as tg
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History
from tightgrad_lab.doctor.numbers import quantile, rounded
from tightgrad_lab.doctor.rules.over_clipping import SMALL_COEF, nearly_always

PROBLEM = "steady_clipping"


def check(history: History) -> Finding | None:
    """Nearly all steps are clipped, in the middle to more than what over_clipping names."""
    found = nearly_always(history)
    if found is None or found.middle <= SMALL_COEF:
        return None
    _, coefs = history.series("clip_coef")
    low, high = quantile(coefs, 0.1), quantile(coefs, 0.9)
    evidence = (
        f"{found.rate:.0%} of {len(coefs)} steps were clipped, to {found.middle:.2g} of the gradient (median; "
        f"{low:.2g} to {high:.2g} from the 10th to the 90th percentile): the clip acts as a factor of the learning "
        "rate. With SGD a steady factor is a lower rate; Adam and its kind divide it out, and only its changes count."
    )
    _, norms = history.series("grad_norm")
    if not norms:
        return Finding(PROBLEM, evidence, "tune the bound and the learning rate together.", found.first)
    bound = rounded(quantile(norms, 0.9))
    cure = (
        "tune the bound and the learning rate together. For a clip that catches outliers only, take the "
        f"90th-percentile norm, GlobalNorm({bound:g}), and with SGD {found.middle:.2g} times the learning rate."
    )
    plan = replace(history.plan or tg.Plan(), clip=tg.clip.GlobalNorm(bound))
    return Finding(PROBLEM, evidence, cure, found.first, plan)
