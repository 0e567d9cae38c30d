"""Memory that grows by the same amount at every step: something from each step is kept, usually with its graph."""

from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History
from tightgrad_lab.doctor.numbers import line

PROBLEM = "graph_kept_alive"
LEAST_STEPS = 30
WARM_UP = 0.2
LEAST_GROWTH_NBYTES = 8e6
LEAST_GROWTH_SHARE = 0.02
STRAIGHT = 0.9


def check(history: History) -> Finding | None:
    """After the first fifth of the run, memory grows linearly, in the second half as in the first."""
    for records in history.ranks:
        pairs = [(int(r["step"]), float(r["memory_bytes"])) for r in records if r.get("memory_bytes") is not None]
        if len(pairs) < LEAST_STEPS:
            continue
        kept = pairs[round(WARM_UP * len(pairs)) :]
        steps, nbytes = [step for step, _ in kept], [value for _, value in kept]
        half = len(kept) // 2
        whole, second = line(steps, nbytes), line(steps[half:], nbytes[half:])
        if whole is None or second is None or whole.slope <= 0:
            continue
        growth = whole.slope * (steps[-1] - steps[0])
        enough = growth >= max(LEAST_GROWTH_NBYTES, LEAST_GROWTH_SHARE * nbytes[0])
        if enough and whole.explained >= STRAIGHT and second.slope >= 0.5 * whole.slope:
            evidence = (
                f"memory grew by {whole.slope / 1e6:.3g} MB at every step, from {nbytes[0] / 1e6:.0f} MB at step "
                f"{steps[0]} to {nbytes[-1] / 1e6:.0f} MB at step {steps[-1]}."
            )
            cure = (
                "keep numbers, not graphs: float(loss) or .detach() for what is summed or listed across steps, and "
                "torch.no_grad() around forwards without a backward."
            )
            return Finding(PROBLEM, evidence, cure, steps[0])
    return None
