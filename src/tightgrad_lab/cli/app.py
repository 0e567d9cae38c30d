"""Verbs, and how errors reach a person: one line on stderr, 2 for arguments, 1 for a failed run."""

import re
import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

from tightgrad_lab.cli.audit import audit
from tightgrad_lab.cli.bench.app import bench
from tightgrad_lab.cli.data import data
from tightgrad_lab.cli.doctor import doctor
from tightgrad_lab.cli.exercises import exercises
from tightgrad_lab.cli.lab import lab
from tightgrad_lab.cli.methods import methods
from tightgrad_lab.cli.plan import plan
from tightgrad_lab.cli.report import report
from tightgrad_lab.cli.slides import slides
from tightgrad_lab.cli.watch import watch
from tightgrad_lab.errors import ArgumentError, LabError
from tightgrad_lab.signals import ended_by_signals, leave_at_once

FAILED = 1
WRONG_ARGUMENTS = 2
STOPPED = 128
"""Beyond this, the number of the signal that ended the command."""
INTERRUPTED = STOPPED + signal.SIGINT

app = typer.Typer(
    name="tightgrad",
    help="Gradient accumulation, clipping and compression: case studies, measurements, report.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 the arguments are wrong.",
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(lab)
app.command()(report)
app.command()(methods)
app.command()(slides)
app.command()(audit)
app.command()(doctor)
app.command()(watch)
app.command()(plan)
app.add_typer(bench)
app.add_typer(data)
app.add_typer(exercises)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        print(f"tightgrad {version('tightgrad')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else FAILED
    if code > STOPPED:
        leave_at_once(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    command = typer.main.get_command(app)
    try:
        with ended_by_signals():
            code = command.main(arguments, prog_name="tightgrad", standalone_mode=False)
    except ArgumentError as error:
        return _complain(str(error), WRONG_ARGUMENTS)
    except LabError as error:
        return _complain(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("stopped.", INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own, wherever this version of it keeps click
            raise
        return _complain(_usage_message(error, command), WRONG_ARGUMENTS)
    if code == INTERRUPTED:
        return _complain("stopped.", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _usage_message(error: Any, command: Any) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    if message.startswith("No such command"):
        group = error.ctx.command if getattr(error, "ctx", None) else command
        return f"{message.partition(' Did you')[0].rstrip('.')}; choose from: {', '.join(group.commands)}."
    path = error.ctx.command_path if getattr(error, "ctx", None) else "tightgrad"
    if not message:  # a group without one of its commands, whose help has been printed
        return f"{path} needs one of its commands: {', '.join(error.ctx.command.commands)}."
    return f"{_refused_value(error, message) or message}; see `{path} --help`."


_REFUSED = {
    "int_parsing": "is no whole number",
    "int_from_float": "is no whole number",
    "float_parsing": "is no number",
    "finite_number": "is no finite number",
    "greater_than_equal": "is too small: use {ge:g} or more",
    "less_than_equal": "is too large: use {le:g} or less",
}


def _refused_value(error: Any, message: str) -> str | None:
    """Return what is wrong with a value in our words, not in those of the library that checks it for typer."""
    found: list[Any] = getattr(error.__cause__, "errors", list)()  # pydantic's, since typer 0.26
    words = _REFUSED.get(found[0]["type"]) if found else None
    name = re.search(r"for '([^']+)'", message)
    if words is None or name is None:
        return None
    place = name[1] if name[1].startswith("-") else f"argument {name[1]}"
    return f"{place} {found[0]['input']} {words.format(**found[0].get('ctx', {}))}"


def _complain(message: str, code: int) -> int:
    print(f"tightgrad: {message[:1].lower()}{message[1:]}", file=sys.stderr)
    return code
