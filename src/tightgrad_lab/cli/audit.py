"""`tightgrad audit`: run a training loop beside a float64 reference and name what is wrong."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightgrad_lab.cli.options import Json
from tightgrad_lab.cli.output import indented, print_json
from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from tightgrad_lab.audit import Audit

TEMPLATES = Path(__file__).parent.parent / "audit" / "templates"
WRONG = 1


class Template(StrEnum):
    """Files to start from."""

    RAW = "raw"
    ACCELERATE = "accelerate"
    TRAINER = "trainer"
    LIGHTNING = "lightning"


def audit(
    file: Annotated[Path | None, typer.Argument(metavar="FILE.py", help="The loop; see --template.")] = None,
    ranks: Annotated[
        list[int] | None, typer.Option(min=1, help="Local ranks to try; RANKS of the file, or 1, 2 and 4.")
    ] = None,
    template: Annotated[Template | None, typer.Option(help="Print a file to start from, and stop.")] = None,
    as_json: Json = False,
) -> None:
    """Run [bold]your own training step[/] under 1, 2 and 4 ranks beside a float64 reference, and name what is wrong.

    Exits with 1 if a problem is found, with 2 if the file cannot be run.
    """
    if template is not None:
        print((TEMPLATES / f"{template}.py").read_text(encoding="utf-8"), end="")
        return
    if file is None:
        raise ArgumentError("audit needs a FILE.py; `tightgrad audit --template raw` prints one to start from.")
    from tightgrad_lab.audit import audit as run_audit
    from tightgrad_lab.audit.run import rows
    from tightgrad_lab.cli.progress import share_progress

    with share_progress(f"audit {file.name}") as report:
        found = run_audit(file, tuple(ranks) if ranks else None, report)
    if as_json:
        print_json(rows(found), ok=found.ok)
    else:
        _print(file, found)
    if not found.ok:
        raise typer.Exit(WRONG)


def _print(file: Path, found: "Audit") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    compared = f"{found.steps} optimizer steps in {len(found.scenarios)} circumstances"
    for note in found.notes:
        console.print(f"[dim]note[/] {escape(note)}")
    if found.ok:
        console.print(f"[green]ok[/] {escape(file.name)}: {compared} agree with the float64 reference.")
        return
    for finding in found.findings:
        console.print(f"[red]wrong[/] [bold]{escape(finding.cause)}[/]")
        numbers = "" if finding.gain is None else f" (gain {finding.gain:.4f}, cosine {finding.cosine:.4f})"
        console.print(indented(f"{escape(finding.where)}{numbers}"))
        console.print(indented(escape(finding.detail)))
    console.print(f"{escape(file.name)}: {len(found.findings)} found, {compared} compared.")
