"""Gradients that suddenly become many times larger, or inf or NaN, and that nothing limits."""

import math
from dataclasses import replace
from statistics import median

import tightgrad as tg
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History, Record, is_number
from tightgrad_lab.doctor.numbers import quantile, rounded

PROBLEM = "exploding_norms"
TIMES = 20.0
BEFORE = 50
LEAST_BEFORE = 5
MARGIN = 2.0
MOST_SKIPS = 0.05
LEAST_QUIET = 3
FIRST_BOUND = 1.0


def check(history: History) -> Finding | None:
    """A norm is TIMES the median of those before it and was not clipped, or gradients were not finite."""
    found = _nonfinite(history) or _spike(history)
    if found is None:
        return None
    step, evidence = found
    quiet = quiet_norms(history)
    known = len(quiet) >= LEAST_QUIET
    bound = rounded(MARGIN * quantile(quiet, 0.25)) if known else FIRST_BOUND
    plan = replace(history.plan or tg.Plan(), clip=tg.clip.GlobalNorm(bound))
    how = f"at {MARGIN:g} times the norm of quiet steps (their first quartile)" if known else "from the first step"
    return Finding(PROBLEM, evidence, f"clip {how}: GlobalNorm({bound:g}).", step, plan)


def quiet_norms(history: History) -> list[float]:
    """The norms before the first one that is TIMES the usual."""
    norms: list[float] = []
    for value in history.series("grad_norm")[1]:
        if len(norms) >= LEAST_BEFORE and value > TIMES * median(norms[-BEFORE:]):
            break
        norms.append(value)
    return norms


def _nonfinite(history: History) -> tuple[int, str] | None:
    failure = history.failure
    if failure is not None and failure.error == "NonFiniteGradientError":
        return failure.step, f"the run ended at step {failure.step}: gradients were inf or NaN."
    skipped = [record for record in history.steps if _is_bad(record)]
    scaled = any(record.get("loss_scale") is not None for record in history.steps)
    if not skipped or (scaled and len(skipped) <= MOST_SKIPS * len(history.steps)):
        return None  # a few overflows are how dynamic loss scaling finds its scale
    first = int(skipped[0]["step"])
    if not any("grad_norm" in record for record in history.steps):
        return first, f"the loss was inf or NaN at {len(skipped)} of {len(history.steps)} steps, first at step {first}."
    return first, f"gradients were inf or NaN at {len(skipped)} of {len(history.steps)} steps, first at step {first}."


def _is_bad(record: Record) -> bool:
    """Whether its gradient was not finite: it was skipped for that, or its norm is missing where others have one."""
    measured = (record.get("loss"), record.get("grad_norm"))
    wild = any(isinstance(one, float) and not math.isfinite(one) for one in measured)
    if record.get("skip_reason") == "nonfinite" or (wild and not is_number(record.get("grad_norm"))):
        return True
    return not record.get("skipped") and record.get("clip_coef") is not None and not is_number(record.get("grad_norm"))


def _spike(history: History) -> tuple[int, str] | None:
    usual: list[float] = []
    largest: tuple[float, float, int, bool] | None = None
    first = None
    for record in history.applied:
        if not is_number(record.get("grad_norm")):
            continue
        norm, step = float(record["grad_norm"]), int(record["step"])
        coef = record.get("clip_coef")
        middle = median(usual[-BEFORE:]) if len(usual) >= LEAST_BEFORE else None
        if middle and norm > TIMES * middle and (coef is None or coef >= 1):
            first = step if first is None else first
            if largest is None or norm / middle > largest[0]:
                largest = (norm / middle, norm, step, coef is not None)
        else:
            usual.append(norm)
    if first is None or largest is None:
        return None
    times, norm, step, known = largest
    clipped = "and was not clipped" if known else "and nothing says that it was clipped"
    return first, f"the norm was {norm:.3g} at step {step}, {times:.0f} times the usual, {clipped}."
