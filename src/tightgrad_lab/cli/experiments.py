"""Runs experiments one after the other, with their progress on stderr. One that fails does not stop the others."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from tightgrad_lab.errors import LabError

if TYPE_CHECKING:
    from tightgrad_lab.experiments.run import Outcome


def run_experiments(
    numbers: list[int], runs: Path, *, full: bool, again: bool
) -> "tuple[list[tuple[int, Outcome]], list[str]]":
    """Run the experiments of these pairs.

    Returns:
        How each ended, and what those that failed said.
    """
    outcomes: list[tuple[int, Outcome]] = []
    failures: list[str] = []
    if not numbers:
        return outcomes, failures
    from tightgrad_lab.cli.progress import experiment_progress
    from tightgrad_lab.experiments.catalogue import experiment
    from tightgrad_lab.experiments.run import run_experiment

    chosen = [(number, experiment(number)) for number in numbers]
    with experiment_progress(numbers) as (console, start):
        for number, one in chosen:
            try:
                outcome = run_experiment(number, one, runs, start(number), full=full, again=again)
            except LabError as error:
                failures.append(str(error))
                console.print(f"[red]failed[/] pair {number:>2}  {escape(str(error))}", highlight=False)
                continue
            outcomes.append((number, outcome))
            _tell(console, number, outcome)
    return outcomes, failures


def _tell(console: Console, number: int, outcome: "Outcome") -> None:
    colour = {"measured": "green", "unchanged": "dim", "published": "yellow", "missing": "yellow"}[outcome.status]
    more = f"{outcome.seconds:.0f} s" if outcome.status == "measured" else escape(outcome.reason)
    console.print(f"[{colour}]{outcome.status:<9}[/] pair {number:>2}  {more}", highlight=False)
