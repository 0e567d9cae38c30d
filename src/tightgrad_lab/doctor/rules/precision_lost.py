"""Compression loses what it does not send: no feedback brings it back, or the residual grows without end."""

from dataclasses import fields, is_dataclass, replace
from statistics import median
from typing import Any

import tightgrad as tg
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History, is_number

PROBLEM = "precision_lost"
LOW_COSINE = 0.7
LEAST_COSINES = 3
LEAST_STEPS = 60
GROWTH = 2.0
LARGE = 20.0


def check(history: History) -> Finding | None:
    """What is sent points elsewhere and the rest is dropped, or the residual is large and still grows."""
    return _dropped(history) or _growing(history)


def _dropped(history: History) -> Finding | None:
    plan = history.plan
    if plan is None or plan.compress is None or plan.compress.feedback is not None:
        return None
    codec = plan.compress.codec
    if codec is not None and codec.unbiased:
        return None
    steps, cosines = history.series("compression_cosine")
    if len(cosines) < LEAST_COSINES or median(cosines) >= LOW_COSINE:
        return None
    evidence = (
        f"what was sent has a cosine of {median(cosines):.2f} with the gradient (median of {len(cosines)} steps), and "
        "what was not sent is dropped."
    )
    compress = replace(plan.compress, feedback=tg.ErrorFeedback())
    cure = "send later what was left behind: feedback=ErrorFeedback()."
    return Finding(PROBLEM, evidence, cure, steps[0], replace(plan, compress=compress))


def _growing(history: History) -> Finding | None:
    pairs = [
        (int(r["step"]), float(r["residual_norm"]) / float(r["grad_norm"]))
        for r in history.applied
        if is_number(r.get("residual_norm")) and is_number(r.get("grad_norm")) and r["grad_norm"] > 0
    ]
    if len(pairs) < LEAST_STEPS:
        return None
    quarter = len(pairs) // 4
    ratios = [ratio for _, ratio in pairs]
    early, middle, late = (median(ratios[part * quarter : (part + 1) * quarter]) for part in (1, 2, 3))
    if late < LARGE or late < GROWTH * early or late <= middle:
        return None
    first = next(step for step, ratio in pairs if ratio >= LARGE)
    evidence = f"the residual grew from {early:.3g} to {late:.3g} times the gradient, and still grows."
    plan = history.plan
    finer = None if plan is None or plan.compress is None else _finer(plan.compress)
    if plan is None or finer is None:
        return Finding(PROBLEM, evidence, "send more: a higher density, more bits or a higher rank.", first)
    compress, change = finer
    return Finding(PROBLEM, evidence, f"send more: {change}.", first, replace(plan, compress=compress))


def _finer(compress: tg.Compress) -> tuple[tg.Compress, str]:
    """The same compression with more of it, and what was changed."""
    for part in ("codec", "reducer"):
        method = getattr(compress, part)
        found = None if method is None else _more(method)
        if found is not None:
            return replace(compress, **{part: found[0]}), found[1]
    return tg.Compress(), "no compression"


def _more(method: Any) -> tuple[Any, str] | None:
    known = {field.name for field in fields(method)} if is_dataclass(method) else set()
    for name, factor, most in (("density", 10, 1.0), ("bits", 2, 8), ("approximation_rank", 4, 2**20)):
        if name in known and isinstance(getattr(method, name), int | float) and getattr(method, name) < most:
            value = min(most, getattr(method, name) * factor)
            return replace(method, **{name: value}), f"{name}={value:g}"
    return None
