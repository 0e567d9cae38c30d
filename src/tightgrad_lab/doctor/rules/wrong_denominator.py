"""The norm follows the window's weight: the loss is divided by something else than what it was summed over.

With the right denominator a heavier window has, on average, no larger gradient, and where noise outweighs the rest,
one that is smaller by the square root of the weight. A sum taken for a mean makes the norm grow in proportion; a mean
taken for a sum makes it shrink in proportion.
"""

import math
from dataclasses import replace
from statistics import median

import tightgrad as tg
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History, is_number
from tightgrad_lab.doctor.numbers import Line, line

PROBLEM = "wrong_denominator"
LEAST_STEPS = 30
AROUND = 10
LEAST_SPREAD = 0.05
GROWS, SHRINKS = 0.6, -0.75
NOISE_ALONE = -0.5


def check(history: History) -> Finding | None:
    """log norm against log weight, and against the log of the number of micro-batches."""
    for name, words in (("weight", "weight of the window"), ("micro_batches", "number of micro-batches")):
        found = _slope(history, name)
        if found is None:
            continue
        grows = found.slope > GROWS and found.slope - 2 * found.error > 0.3
        shrinks = name == "weight" and found.slope < SHRINKS and found.slope + 2 * found.error < NOISE_ALONE
        if grows or shrinks:
            evidence = (
                f"the norm goes with the {words} to the power of {found.slope:.2f} ± {found.error:.2f}; with the right "
                "denominator the power is between -0.5 and 0."
            )
            return _finding(history, evidence, grows=grows, by_weight=name == "weight")
    return None


def _finding(history: History, evidence: str, *, grows: bool, by_weight: bool) -> Finding:
    step = int(history.applied[0]["step"])
    plan = history.plan
    if not by_weight:
        cure = "divide by the number of micro-batches that the window really has, or let the pipeline do it."
        return Finding(PROBLEM, evidence, cure, step)
    reduction = "sum" if grows else "mean"
    given = "a sum over the micro-batch" if grows else "a mean over the micro-batch"
    cure = f'the loss that backward() is given is {given}: say so with loss_reduction="{reduction}".'
    accumulate = (plan.accumulate if plan else None) or tg.Accumulate()
    if plan is None or accumulate.loss_reduction == reduction:
        cure = "divide the summed loss by the weight of the whole window, over all micro-batches and ranks."
        return Finding(PROBLEM, evidence, cure, step)
    return Finding(
        PROBLEM, evidence, cure, step, replace(plan, accumulate=replace(accumulate, loss_reduction=reduction))
    )


def _slope(history: History, name: str) -> Line | None:
    pairs = [
        (math.log(float(r[name])), math.log(float(r["grad_norm"])))
        for r in history.applied
        if is_number(r.get(name)) and is_number(r.get("grad_norm")) and r[name] > 0 and r["grad_norm"] > 0
    ]
    if len(pairs) < LEAST_STEPS:
        return None
    xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
    middle = median(xs)
    if math.sqrt(sum((x - middle) ** 2 for x in xs) / len(xs)) < LEAST_SPREAD:
        return None
    # Norms change over a run; what counts is how a step differs from those around it.
    return line(_apart(xs), _apart(ys))


def _apart(values: list[float]) -> list[float]:
    return [value - _mean(values[max(0, place - AROUND) : place + AROUND + 1]) for place, value in enumerate(values)]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
