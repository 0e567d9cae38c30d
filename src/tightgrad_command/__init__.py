"""The command `tightgrad`: what the library alone can do of it, and the door to the lab, which does the rest.

It is outside of `tightgrad`, whose import brings torch: a version, a help text and a completion come at once.
"""

import atexit
import os
import signal
import sys
from importlib.metadata import version

WRONG_ARGUMENTS = 2
NOBODY_READS = 1
"""The reader has seen enough, as in `tightgrad methods | head -1`; typer and rich say the same."""
INSTALL = "pip install 'tightgrad[lab]'"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    atexit.register(_let_interrupts_end_it)  # before any other, so that it is called after them
    try:
        try:
            _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is for nobody, at the exit too
        sys.exit(NOBODY_READS)


def _let_interrupts_end_it() -> None:
    """Ctrl-C ends what is left of the exit at once: with torch, on busy cores, that takes seconds."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        print(f"tightgrad {version('tightgrad')}")
        sys.exit(0)
    try:
        from tightgrad_lab.cli import main as run
    except ModuleNotFoundError as error:
        if error.name != "tightgrad_lab":
            raise
        sys.exit(_without_lab(arguments))
    run(arguments)


def _without_lab(arguments: list[str]) -> int:
    """Run what needs only the library; return the exit code."""
    if arguments[:1] == ["methods"] and len(arguments) < 3 and not any(word.startswith("-") for word in arguments):
        from tightgrad_command.methods import explained, listed

        try:
            print(explained(arguments[1]) if len(arguments) == 2 else listed())
        except LookupError as error:
            print(f"tightgrad: {error.args[0]}", file=sys.stderr)
            return WRONG_ARGUMENTS
        return 0
    alone = "without the lab there are `tightgrad --version` and `tightgrad methods [NAME]`"
    print(f"tightgrad: {alone}; for the rest: {INSTALL}", file=sys.stderr)
    return WRONG_ARGUMENTS
