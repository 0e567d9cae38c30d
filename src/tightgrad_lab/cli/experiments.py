"""Runs experiments one after the other, with their progress on stderr. One that fails does not stop the others."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from tightgrad_lab.errors import LabError

if TYPE_CHECKING:
    from tightgrad_lab.experiments.run import Outcome


def run_experiments(
    names: list[str], runs: Path, *, full: bool, again: bool
) -> "tuple[list[tuple[str, Outcome]], list[str]]":
    """Run these experiments.

    Returns:
        How each ended, and what those that failed said.
    """
    outcomes: list[tuple[str, Outcome]] = []
    failures: list[str] = []
    if not names:
        return outcomes, failures
    from tightgrad_lab.cli.terminal.progress import experiment_progress, titled
    from tightgrad_lab.experiments.catalogue import experiment
    from tightgrad_lab.experiments.run import run_experiment

    chosen = [(name, experiment(name)) for name in names]
    with experiment_progress(names) as (console, start):
        for name, one in chosen:
            try:
                outcome = run_experiment(name, one, runs, start(name), full=full, again=again)
            except LabError as error:
                failures.append(str(error))
                console.print(f"[red]failed[/] {titled(name)}  {escape(str(error))}", highlight=False)
                continue
            outcomes.append((name, outcome))
            _tell(console, name, outcome)
    return outcomes, failures


def _tell(console: Console, name: str, outcome: "Outcome") -> None:
    from tightgrad_lab.cli.terminal.progress import titled

    colour = {"measured": "green", "unchanged": "dim", "published": "yellow", "missing": "yellow"}[outcome.status]
    more = f"{outcome.seconds:.0f} s" if outcome.status == "measured" else escape(outcome.reason)
    console.print(f"[{colour}]{outcome.status:<9}[/] {titled(name)}  {more}", highlight=False)
