"""PowerSGD starts from factors that do not span the gradient, and one power iteration does not find it: the gradient
turns further from step to step than the factors follow, for example where sources of data take turns.

With feedback, factors turn by themselves, towards what was left behind, so that more must speak for it.
"""

from dataclasses import replace
from statistics import median

import tightgrad as tg
from tightgrad.reducers import PowerSGD
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History

PROBLEM = "stale_warm_start"
LOW_OVERLAP, LOW_OVERLAP_WITH_FEEDBACK = 0.5, 0.15
LOW_COSINE = 0.8
LEAST = 4
RANK_FACTOR = 4


def check(history: History) -> Finding | None:
    """Factors keep few directions from step to step, and what is sent does not point along the gradient."""
    steps, overlaps = history.series("warm_start_overlap")
    _, cosines = history.series("compression_cosine")
    plan = history.plan
    compress = plan.compress if plan is not None else None
    fed_back = compress is not None and compress.feedback is not None
    if len(overlaps) < LEAST or not cosines:
        return None
    overlap, cosine = median(overlaps), median(cosines)
    if overlap >= (LOW_OVERLAP_WITH_FEEDBACK if fed_back else LOW_OVERLAP) or cosine >= LOW_COSINE:
        return None
    evidence = (
        f"the factors that a step starts from share {overlap:.2f} of their directions with those that it ends with, "
        f"and what was sent has a cosine of {cosine:.2f} with the gradient (medians of {len(overlaps)} steps)."
    )
    if plan is None or compress is None or not isinstance(compress.reducer, PowerSGD):
        return Finding(PROBLEM, evidence, "use error feedback, or a higher approximation_rank.", steps[0])
    if not fed_back:
        cure = "send later what the factors missed: feedback=ErrorFeedback()."
        return Finding(PROBLEM, evidence, cure, steps[0], _with(plan, replace(compress, feedback=tg.ErrorFeedback())))
    rank = compress.reducer.approximation_rank * RANK_FACTOR
    reducer = replace(compress.reducer, approximation_rank=rank)
    cure = f"span more directions: PowerSGD({rank})."
    return Finding(PROBLEM, evidence, cure, steps[0], _with(plan, replace(compress, reducer=reducer)))


def _with(plan: tg.Plan, compress: tg.Compress) -> tg.Plan:
    return replace(plan, compress=compress)
