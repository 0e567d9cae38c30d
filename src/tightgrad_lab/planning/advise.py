"""Which plan to take: the fastest predicted one, or none if dense is nearly as fast."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tightgrad as tg
from tightgrad_lab.common.recommended import RECOMMENDED
from tightgrad_lab.planning.cost import Compute, PathCost, ddp_seconds, plan_seconds
from tightgrad_lab.planning.link import Link
from tightgrad_lab.planning.memory import Footprint, fitting, of_plan

DENSE = "dense"
NEARLY = 1.05
"""Dense is taken when its step is at most this much longer. A milder plan that is, is named beside the fastest."""


@dataclass(frozen=True)
class Prediction:
    """One row.

    Args:
        plan: its name; "dense" is DDP without a plan.
        predicted_step_seconds: by the cost model.
        wire_bytes: that leave a rank in a step.
        memory_bytes: at the fullest moment of a step on one rank: parameters, gradients, AdamW's state, what the plan
            remembers, and the larger of what its reduce holds for a moment and the activations of one micro-batch
            (without these where there was no model to measure).
        largest_micro_batch: the most samples whose step fits; None where activations were not measured.
        reason: in words.
    """

    plan: str
    predicted_step_seconds: float
    wire_bytes: int
    memory_bytes: int
    largest_micro_batch: int | None
    reason: str


@dataclass(frozen=True)
class Advice:
    """Rows, and which to take.

    Args:
        predictions: dense first, then the plans from mild to strong.
        recommended: the name of a plan; None says not to compress.
        reason: in one sentence.
    """

    predictions: tuple[Prediction, ...]
    recommended: str | None
    reason: str


def advise(
    compute: Compute,
    numels: Sequence[int],
    paths: Mapping[str, PathCost],
    ranks: int,
    link: Link,
    memory: Footprint,
    available_nbytes: int,
) -> Advice:
    """Predict every plan and choose.

    Args:
        compute: of a step, without communication.
        numels: of the parameters, in the model's order.
        paths: what each plan adds; in the order from mild to strong.
        ranks: of the run.
        link: between them.
        memory: what each plan's memory follows from.
        available_nbytes: of memory, for one rank.
    """
    dense = ddp_seconds(compute, numels, ranks, link)
    seconds = {name: plan_seconds(compute, path, ranks, link) for name, path in paths.items()}
    chosen = fastest_or_dense({DENSE: dense, **seconds})
    sent = 4 * sum(numels) * 2 * (ranks - 1) // ranks
    rows = []
    for name, each in {DENSE: dense, **seconds}.items():
        plan = plan_named(None if name == DENSE else name)
        if name == DENSE:
            reason = _waits(dense, compute)
        else:
            network = each - compute.seconds - paths[name].seconds
            reason = f"{paths[name].seconds:.3g} s of encoding and decoding, {network:.3g} s of network"
        rows.append(
            Prediction(
                plan=name,
                predicted_step_seconds=each,
                wire_bytes=sent if name == DENSE else paths[name].wire_bytes,
                memory_bytes=of_plan(memory, plan).total,
                largest_micro_batch=fitting(memory, plan, available_nbytes),
                reason=reason,
            )
        )
    return Advice(tuple(rows), None if chosen == DENSE else chosen, _reason(chosen, dense, seconds, compute))


def fastest_or_dense(seconds: Mapping[str, float]) -> str:
    """The plan of the fewest seconds, or dense if it is nearly as fast: that loses nothing."""
    fastest = min(seconds, key=seconds.__getitem__)
    return DENSE if seconds[DENSE] <= NEARLY * seconds[fastest] else fastest


def _waits(dense: float, compute: Compute) -> str:
    return f"{max(0.0, dense - compute.seconds):.3g} s of network that backward does not hide"


def _reason(chosen: str, dense: float, seconds: Mapping[str, float], compute: Compute) -> str:
    if chosen == DENSE:
        if not seconds:
            return "there is no plan to compare."
        name, fastest = min(seconds.items(), key=lambda pair: pair[1])
        return (
            f"do not compress, since dense takes {dense:.3g} s a step, of which {compute.seconds:.3g} s are computing, "
            f"and the fastest plan, {name}, would take {fastest:.3g} s."
        )
    faster = dense / seconds[chosen]
    name = next(name for name, each in seconds.items() if each <= NEARLY * seconds[chosen])
    milder = (
        "" if name == chosen else f"; {name} takes {seconds[name] / seconds[chosen]:.2f} times as long, and loses less"
    )
    return (
        f"{chosen} takes {seconds[chosen]:.3g} s a step, {faster:.3g} times faster than dense ({dense:.3g} s), of "
        f"which {compute.seconds:.3g} s are computing{milder}."
    )


def plan_named(name: str | None) -> tg.Plan:
    """The recommended plan; the empty one for None."""
    return tg.Plan() if name is None else RECOMMENDED[name]
