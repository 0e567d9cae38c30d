"""A micro-batch does not fit: the run ended, or windows were run again and again with smaller ones."""

from dataclasses import replace

import tightgrad as tg
from tightgrad_lab.doctor.finding import Finding
from tightgrad_lab.doctor.history import History

PROBLEM = "out_of_memory"
MANY_RETRIES = 3


def check(history: History) -> Finding | None:
    """Out of memory ended the run, or made windows run again at several steps."""
    retried = [record for record in history.steps if record.get("retries")]
    failure = history.failure
    if failure is not None and failure.out_of_memory:
        step, evidence = failure.step, f"the run ended at step {failure.step}: {_first_line(failure.message)}"
    elif len(retried) >= MANY_RETRIES:
        step = int(retried[0]["step"])
        evidence = f"{len(retried)} of {len(history.steps)} windows ran out of memory and were run again."
    else:
        return None
    plan = history.plan or tg.Plan()
    accumulate = plan.accumulate or tg.Accumulate()
    before = accumulate.micro_batches if isinstance(accumulate.micro_batches, int) else None
    if before == 1 or plan.accumulate is None:
        smaller = replace(accumulate, micro_batches=2, source="split", on_oom="split", fetch="window")
        cure = (
            "cut each batch into two micro-batches, and into more where that is not enough: "
            'Accumulate(2, source="split", on_oom="split"), with pipe.run(window, loss). The gradient '
            "stays the same, if the loss is a weighted mean of per-sample terms."
        )
    else:
        smaller = replace(accumulate, on_oom="split", fetch="window")
        cure = (
            'let windows that do not fit run again with smaller micro-batches: on_oom="split", with pipe.run(window, '
            "loss). The gradient stays the same, if the loss is a weighted mean of per-sample terms."
        )
    if accumulate.fetch == "batch":
        cure += ' A window that may run again needs all its batches, so fetch="window".'
    return Finding(PROBLEM, evidence, cure, step, replace(plan, accumulate=replace(smaller, sync="auto")))


def _first_line(message: str) -> str:
    return (message.strip().splitlines() or ["out of memory"])[0][:200]
