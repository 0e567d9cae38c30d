"""Which plan to take: the fastest predicted one, or a milder one that is nearly as fast, or none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tightgrad as tg
from tightgrad.pipeline.reduction import BUCKET_NBYTES
from tightgrad_lab.bench.recommended import RECOMMENDED
from tightgrad_lab.planning.cost import Compute, PathCost, ddp_seconds, plan_seconds
from tightgrad_lab.planning.link import Link

DENSE = "dense"
FLOAT_NBYTES = 4
COPIES = 4
"""Parameters, gradients, and AdamW's two moments."""
NEARLY = 1.05
"""A milder plan is taken when its step is at most this much longer."""


@dataclass(frozen=True)
class Prediction:
    """One row.

    Args:
        plan: its name; "dense" is DDP without a plan.
        predicted_step_seconds: by the cost model.
        wire_bytes: that leave a rank in a step.
        memory_bytes: of a step on one rank, without activations: parameters, gradients, AdamW's state, what the plan
            remembers and what its reduce holds for a moment.
        reason: in words.
    """

    plan: str
    predicted_step_seconds: float
    wire_bytes: int
    memory_bytes: int
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


def advise(compute: Compute, numels: Sequence[int], paths: Mapping[str, PathCost], ranks: int, link: Link) -> Advice:
    """Predict every plan and choose.

    Args:
        compute: of a step, without communication.
        numels: of the parameters, in the model's order.
        paths: what each plan adds; in the order from mild to strong.
        ranks: of the run.
        link: between them.
    """
    dense = ddp_seconds(compute, numels, ranks, link)
    seconds = {name: plan_seconds(compute, path, ranks, link) for name, path in paths.items()}
    best = min([dense, *seconds.values()])
    chosen = next(name for name, each in {DENSE: dense, **seconds}.items() if each <= NEARLY * best)
    sent = 4 * sum(numels) * 2 * (ranks - 1) // ranks
    rows = [Prediction(DENSE, dense, sent, memory_nbytes(numels, tg.Plan()), _waits(dense, compute))]
    for name, each in seconds.items():
        network = each - compute.seconds - paths[name].seconds
        reason = f"{paths[name].seconds:.3g} s of encoding and decoding, {network:.3g} s of network"
        memory = memory_nbytes(numels, plan_named(name))
        rows.append(Prediction(name, each, paths[name].wire_bytes, memory, reason))
    return Advice(tuple(rows), None if chosen == DENSE else chosen, _reason(chosen, dense, seconds, compute))


def memory_nbytes(numels: Sequence[int], plan: tg.Plan) -> int:
    """Bytes of a step in float32 with AdamW, without activations."""
    total = FLOAT_NBYTES * sum(numels)
    always = COPIES * total
    if plan.compress is None:
        return always
    kept = [slot for slot in plan.slots.values() if slot.like_parameter]
    remembered = sum(total if slot.storage is None else total // FLOAT_NBYTES for slot in kept)
    bucket = min(total, BUCKET_NBYTES)
    return always + 2 * remembered + total + 2 * bucket  # before and after the step; the sums; compensated, received


def _waits(dense: float, compute: Compute) -> str:
    return f"{max(0.0, dense - compute.seconds):.3g} s of network that backward does not hide"


def _reason(chosen: str, dense: float, seconds: Mapping[str, float], compute: Compute) -> str:
    if chosen == DENSE:
        if not seconds:
            return "there is no plan to compare."
        name, fastest = min(seconds.items(), key=lambda pair: pair[1])
        return (
            f"do not compress: dense takes {dense:.3g} s a step, of which {compute.seconds:.3g} s are computing, and "
            f"the fastest plan, {name}, would take {fastest:.3g} s."
        )
    faster = dense / seconds[chosen]
    name, fastest = min(seconds.items(), key=lambda pair: pair[1])
    milder = "" if name == chosen else f"; {name} is {seconds[chosen] / fastest:.2f} times as fast, but loses more"
    return (
        f"{chosen} takes {seconds[chosen]:.3g} s a step, {faster:.3g} times faster than dense ({dense:.3g} s), of "
        f"which {compute.seconds:.3g} s are computing{milder}."
    )


def plan_named(name: str | None) -> tg.Plan:
    """The recommended plan; the empty one for None."""
    return tg.Plan() if name is None else RECOMMENDED[name]
