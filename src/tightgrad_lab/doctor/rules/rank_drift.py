"""Ranks that should hold the same numbers do not."""

from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History, is_number

PROBLEM = "rank_drift"
SAME = {"parameter_norm": "norm of the parameters", "grad_norm": "norm of the delivered gradient", "weight": "weight"}
"""What is the same on every rank after every step."""
TOLERANCE = 1e-6


def check(history: History) -> Finding | None:
    """The first step at which a rank's record differs from rank 0's in what must be the same."""
    first: tuple[int, int, str, float, float] | None = None
    by_step = {int(record["step"]): record for record in history.steps}
    for rank, records in enumerate(history.ranks[1:], start=1):
        for record in records:
            step = int(record["step"])
            mine = by_step.get(step, {})
            for name in SAME:
                ours, theirs = mine.get(name), record.get(name)
                if not (is_number(ours) and is_number(theirs)) or mine.get("skipped") != record.get("skipped"):
                    continue
                if abs(ours - theirs) > TOLERANCE * max(abs(ours), abs(theirs)) and (first is None or step < first[0]):
                    first = (step, rank, name, float(ours), float(theirs))
    if first is None:
        return None
    step, rank, name, ours, theirs = first
    evidence = f"at step {step} the {SAME[name]} is {theirs:.7g} on rank {rank} and {ours:.7g} on rank 0."
    cure = (
        "start all ranks from the same weights and optimizer state: load the checkpoint on every rank before DDP or "
        "fully_shard, or broadcast it from rank 0; take the last checkpoint from before this step."
    )
    return Finding(PROBLEM, evidence, cure, step)
