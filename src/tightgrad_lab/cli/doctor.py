"""`tightgrad doctor`: read a run's records, name what is wrong, say how to cure it."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import indented, print_json

if TYPE_CHECKING:
    import tightgrad as tg
    from tightgrad_lab.doctor import Finding, History

WRONG = 1
JUDGED = ("loss", "grad_norm", "clip_coef", "memory_bytes")
"""What most rules look at."""


def doctor(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Read this log, or the steps.jsonl, TensorBoard event files or log of this folder."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Read the records of any [bold]run[/] and name what is wrong, with evidence and a cure.

    Exits with 1 if a problem is found. Notes are worth knowing, and no problem.
    """
    from tightgrad_lab.doctor import examine, notes, read_history

    history = read_history(run)
    findings, remarks = examine(history), notes(history)
    if as_json:
        rows, more = ([one.to_row() for one in found] for found in (findings, remarks))
        print_json(rows, ok=not findings, notes=more)
    else:
        _print(history, findings, remarks)
    if findings:
        raise typer.Exit(WRONG)


def _changes(before: "tg.Plan | None", after: "tg.Plan") -> str:
    """The parts of the plan that the cure changes, as lines to paste into the loop."""
    from tightgrad.core.kinds import written

    parts = [name for name in (field.name for field in fields(after)) if getattr(after, name) is not None]
    changed = [name for name in parts if before is None or getattr(before, name) != getattr(after, name)]
    return ", ".join(f"{name}={written(getattr(after, name))}" for name in changed)


def _print(history: "History", findings: "list[Finding]", remarks: "list[Finding]") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    ranks = len(history.ranks)
    read = f"{len(history.steps)} steps" + (f" of each of {ranks} ranks" if ranks > 1 else "")
    if not findings:
        unknown = [name for name in JUDGED if not any(record.get(name) is not None for record in history.steps)]
        left = f" Not logged, and so not judged: {', '.join(unknown)}." if unknown else ""
        console.print(f"[green]ok[/] {escape(history.source)}: nothing wrong in {read}.{left}")
    for kind, advice, found in (("[red]wrong[/]", "cure", findings), ("[yellow]note[/]", "if you like", remarks)):
        for finding in found:
            console.print(f"{kind} [bold]{finding.problem.replace('_', ' ')}[/], from step {finding.step}")
            console.print(indented(escape(finding.evidence)))
            console.print(indented(f"[green]{advice}:[/] {escape(finding.cure)}"))
            if finding.plan is not None:
                console.print(indented(f"[dim]plan:[/] {escape(_changes(history.plan, finding.plan))}"))
    if findings:
        problems = "1 problem" if len(findings) == 1 else f"{len(findings)} problems"
        console.print(f"{escape(history.source)}: {problems} in {read}.")
