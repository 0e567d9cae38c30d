"""What commonly goes wrong, provoked; what `tightgrad doctor` says about its records; and the run that it
says would be right.
"""

import ctypes
import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightgrad_lab.doctor import Finding, History, examine, read_history
from tightgrad_lab.experiments.common_failures.runs import FAILURES, Failure, Run
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.schema.failures import CommonFailuresFigure, FailureCurve, FailureRow
from tightgrad_lab.training.files import finite

CURVES = {
    "over_clipping": "loss",
    "graph_kept_alive": "memory_bytes",
    "out_of_memory": "loss",
    "precision_lost": "loss",
}
"""The panels of the figure: what each shows over the steps."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        steps: of each training, unless it ends before.
        seeds: trainings of each failure that differ in nothing but their random numbers.
    """

    steps: int
    seeds: int


@dataclass(frozen=True)
class Job:
    """One failure, with one seed: before and after the cure."""

    problem: str
    seed: int
    steps: int


class CommonFailures(Experiment[Settings]):
    """Nine failures and their cures."""

    def settings(self, *, full: bool) -> Settings:
        """Three seeds, or five and longer."""
        return Settings(300, 5) if full else Settings(120, 3)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Train, examine, cure, train, examine."""
        jobs = [Job(name, seed, settings.steps) for name in FAILURES for seed in range(settings.seeds)]
        order = sorted(range(len(jobs)), key=lambda place: jobs[place].problem != "exploding_norms")
        found = run_all(provoke, [jobs[place] for place in order], report)
        outcomes = [outcome for _, outcome in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]
        by_problem = {
            name: [outcome for job, outcome in zip(jobs, outcomes, strict=True) if job.problem == name]
            for name in FAILURES
        }
        figure: CommonFailuresFigure = {
            "panels": [
                {"problem": name, "field": field, "runs": [outcome["curves"] for outcome in by_problem[name]]}
                for name, field in CURVES.items()
            ]
        }
        return Measured(figure, [row(name, own) for name, own in by_problem.items()])


def provoke(job: Job) -> dict[str, Any]:
    """Train until it has gone wrong, ask the doctor, train as he says, ask again."""
    failure = FAILURES[job.problem]
    with tempfile.TemporaryDirectory(prefix="tightgrad-") as name:
        folder = Path(name)
        before, history, findings = _examined(failure, Run(failure.plan, False, job.seed, job.steps, folder / "before"))
        own = next((finding for finding in findings if finding.problem == job.problem), None)
        plan = failure.plan if own is None or own.plan is None else own.plan
        after, cured, left = _examined(failure, Run(plan, own is not None, job.seed, job.steps, folder / "after"))
    field = CURVES.get(job.problem, "loss")
    return {
        "before": finite(before),
        "after": finite(after),
        "said": [finding.to_row() for finding in findings],
        "named": own is not None,
        "said_after": [finding.to_row() for finding in left],
        "curves": {"before": _curve(history, field), "after": _curve(cured, field)},
    }


def _examined(failure: Failure, run: Run) -> tuple[float, History, list[Finding]]:
    _give_back_memory()
    value = failure.train(run)
    history = read_history(run.folder)
    return value, history, examine(history)


def _curve(history: History, field: str) -> FailureCurve:
    steps, values = history.series(field)
    return {"steps": steps, "values": values, "ended": history.failure is not None}


def _give_back_memory() -> None:
    """Return freed memory to the system, so that what an earlier run has left does not hide what this one takes."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def row(problem: str, outcomes: list[dict[str, Any]]) -> FailureRow:
    """One problem over all seeds; what was said is that of the first."""
    first = outcomes[0]
    own = next((said for said in first["said"] if said["problem"] == problem), None)
    return {
        "problem": problem,
        "metric": FAILURES[problem].metric,
        "before": [outcome["before"] for outcome in outcomes],
        "after": [outcome["after"] for outcome in outcomes],
        "named": sum(outcome["named"] for outcome in outcomes),
        "cured": sum(all(said["problem"] != problem for said in o["said_after"]) for o in outcomes),
        "also_said": sorted({said["problem"] for o in outcomes for said in o["said"]} - {problem}),
        "said_after": sorted({said["problem"] for o in outcomes for said in o["said_after"]}),
        "evidence": own["evidence"] if own else None,
        "cure": own["cure"] if own else None,
        "step": own["step"] if own else None,
        "plan_before": FAILURES[problem].plan.to_config(),
        "plan_after": own["plan"] if own else None,
    }


EXPERIMENT = CommonFailures()
