"""Micro-batches without a target that counts: their mean loss is 0/0, and a window of nothing else has no step."""

import math

from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History, Record, is_number

PROBLEM = "all_masked"


def check(history: History) -> Finding | None:
    """A window weighed nothing, or a loss is NaN where the gradient is a number, on any rank."""
    records = [record for rank in history.ranks for record in rank]
    empty = sorted({int(r["step"]) for r in records if r.get("skip_reason") == "zero_weight"})
    undefined = sorted({int(r["step"]) for r in records if _has_undefined_loss(r)})
    if not empty and not undefined:
        return None
    parts = []
    if empty:
        parts.append(f"{len(empty)} of {len(history.steps)} windows had no target that counts and were skipped")
    if undefined:
        parts.append(f"the loss is NaN at {len(undefined)} steps whose gradient is a number")
    cure = (
        "leave out samples whose labels are all masked (often a prompt that fills the whole sequence), and divide a "
        "sum of losses by the weight of the window, never by that of one micro-batch."
    )
    evidence = f"{' and '.join(parts)}: a micro-batch with all its labels masked has a mean of 0/0."
    return Finding(PROBLEM, evidence, cure, min([*empty, *undefined]))


def _has_undefined_loss(record: Record) -> bool:
    loss = record.get("loss")
    return isinstance(loss, float) and math.isnan(loss) and is_number(record.get("grad_norm"))
