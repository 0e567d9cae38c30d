"""`tightgrad audit`: run a training script or step as it is, and name what is wrong with its gradients."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import indented, print_json
from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from tightgrad_lab.audit import Audit
    from tightgrad_lab.audit.script import ScriptAudit, Settings

TEMPLATES = Path(__file__).parent.parent / "audit" / "templates"
BOARD = Path("benchmarks") / "results" / "board"
WRONG = 1


class Template(StrEnum):
    """Files to start from."""

    RAW = "raw"
    ACCELERATE = "accelerate"
    TRAINER = "trainer"
    LIGHTNING = "lightning"


def audit(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.py] [-- ARGS]",
            help="Audit the loop in this file (see --template), or pass these arguments to the script.",
        ),
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="SCRIPT.py", help="Run this script itself, unmodified.")] = None,
    module: Annotated[
        str | None, typer.Option("-m", metavar="MODULE", help="Run this module, as `python -m` does.")
    ] = None,
    ranks: Annotated[
        list[str] | None,
        typer.Option(help="Try these numbers of local ranks. Default: 1,2 for a script; RANKS or 1,2,4 for a FILE."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Stop a script after this many optimizer steps.")] = 6,
    batches: Annotated[
        int | None, typer.Option(min=1, help="Cut epochs to this many batches, so that their end is seen.")
    ] = None,
    shrink: Annotated[
        list[str] | None,
        typer.Option(
            metavar="module.Class:name=value,...", help="Build a class with these arguments instead; may be repeated."
        ),
    ] = None,
    limit: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="Stop a script that has not taken its steps by then."),
    ] = 900.0,
    stub: Annotated[
        list[str] | None, typer.Option(help="Replace these packages by empty ones if they are missing.")
    ] = None,
    repos: Annotated[
        Path | None, typer.Option(help="Run the rows of `audit board` again, on clones in this folder.")
    ] = None,
    template: Annotated[Template | None, typer.Option(help="Print a file to start from, and exit.")] = None,
    as_json: Json = False,
) -> None:
    """Run [bold]your own training script[/] on local CPU ranks, and say what it makes each target count.

    `tightgrad audit --run train.py -- --epochs 2` needs nothing else. A FILE.py with four functions is compared with a
    float64 reference instead; `audit board` shows what was found in public scripts. Exits with 1 if a problem
    is found, with 2 if it cannot be run.
    """
    if template is not None:
        print((TEMPLATES / f"{template}.py").read_text(encoding="utf-8"), end="")
        return
    if arguments == ["board"] and run is None and module is None:
        _board(repos, as_json)
        return
    counts = _counts(ranks)
    if run is None and module is None:
        _file(arguments, counts, as_json)
        return
    if run is not None and module is not None:
        raise ArgumentError("--run SCRIPT.py and -m MODULE are two ways to say what to run; use one of them.")
    from tightgrad_lab.audit.script import Settings

    settings = Settings(
        target=run or module or "",
        is_module=module is not None,
        arguments=tuple(arguments or ()),
        steps=steps,
        batches=batches,
        shrink=tuple(shrink or ()),
        limit_seconds=limit,
        stubs=tuple(name for one in stub or () for name in one.split(",") if name),
    )
    _script(settings, counts, as_json)


def _board(repos: Path | None, as_json: bool) -> None:
    from tightgrad_lab.audit.board import load_board, run_board, table

    rows = load_board(BOARD)
    if repos is not None:
        rows = run_board(BOARD, repos, lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print_json(rows)
    else:
        print(table(rows))


def _counts(ranks: Sequence[str] | None) -> tuple[int, ...] | None:
    if not ranks:
        return None
    parts = [part for one in ranks for part in one.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ArgumentError(f"--ranks {','.join(ranks)} is no list of numbers from 1; write --ranks 1,2.")
    return tuple(int(part) for part in parts)


def _file(arguments: list[str] | None, ranks: tuple[int, ...] | None, as_json: bool) -> None:
    if not arguments:
        raise ArgumentError(
            "audit needs --run SCRIPT.py, or a FILE.py; `tightgrad audit --template raw` prints one to start from."
        )
    if len(arguments) > 1:
        raise ArgumentError(f"audit takes one FILE.py, not {' '.join(arguments)}; arguments of a script go with --run.")
    file = Path(arguments[0])
    from tightgrad_lab.audit import audit as run_audit
    from tightgrad_lab.audit.run import rows
    from tightgrad_lab.cli.terminal.progress import share_progress

    with share_progress(f"audit {file.name}") as report:
        found = run_audit(file, ranks, report)
    if as_json:
        print_json(rows(found), ok=found.ok)
    else:
        _print(file, found)
    if not found.ok:
        raise typer.Exit(WRONG)


def _script(settings: "Settings", ranks: tuple[int, ...] | None, as_json: bool) -> None:
    from tightgrad_lab.audit.script import audit_script
    from tightgrad_lab.cli.terminal.progress import share_progress

    with share_progress(f"audit {settings.name}") as report:
        found = audit_script(settings, ranks, report)
    if as_json:
        print_json(found.rows(), ok=found.ok, changes=list(found.changes))
    else:
        _print_script(settings.name, found)
    if not found.ok:
        raise typer.Exit(WRONG)


def _print_script(name: str, found: "ScriptAudit") -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for words in found.changes:
        console.print(f"[dim]changed[/] {escape(words)}")
    for one in found.remarks:
        console.print(f"{'[red]wrong[/]' if one.wrong else '[dim]note[/] '} [bold]{escape(one.cause)}[/]")
        place = one.place.removeprefix(f"{Path.cwd()}/")
        console.print(indented(escape(", ".join(part for part in (place, one.where) if part))))
        if one.cure:
            console.print(indented(f"Cure: {escape(one.cure)}"))
    seen = f"{found.steps} steps, {found.backwards} backwards and {found.targets} targets were seen"
    wrong = sum(one.wrong for one in found.remarks)
    verdict = f"{wrong} found" if wrong else "[green]ok[/], nothing is wrong with what was seen"
    console.print(f"{escape(name)}: {verdict}; {seen}.")


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
