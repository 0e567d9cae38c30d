"""The command `tightgrad`: one file per verb. Nothing heavy is imported before a verb needs it, and nothing at all that
`pip install tightgrad` does not bring: what a verb misses is said in one line.
"""

import sys

from tightgrad_lab.cli.extras import how_to_install

WRONG_ARGUMENTS = 2


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; with 2 if a package is missing."""
    try:
        from tightgrad_lab.cli.app import main as run

        run(arguments)
    except ModuleNotFoundError as error:
        hint = how_to_install(error.name)
        if hint is None:
            raise
        print(f"tightgrad: {hint}", file=sys.stderr)
        sys.exit(WRONG_ARGUMENTS)
