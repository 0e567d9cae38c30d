"""`tightgrad slides`: rebuild the lecture's slides from what was measured."""

from typing import Annotated

import typer

from tightgrad_lab.cli.terminal.options import REPORT, RUNS, Json, Report, Runs
from tightgrad_lab.cli.terminal.output import build_powerpoint, build_slides, print_json
from tightgrad_lab.errors import ArgumentError


def slides(
    pptx: Annotated[
        bool, typer.Option("--pptx", help="Also PowerPoint files; needs pip install 'tightgrad\\[pptx]'.")
    ] = False,
    runs: Runs = RUNS,
    report: Report = REPORT,
    as_json: Json = False,
) -> None:
    """Rebuild the [bold]slides[/] of the lecture (slides.zh.html, slides.en.html) from what `tightgrad lab` wrote."""
    if not runs.is_dir():
        raise ArgumentError(f"there is no folder {runs}; run `tightgrad lab` first, or name another with --runs.")
    written = build_slides(runs, report)
    if pptx:
        written += build_powerpoint(runs, report)
    if as_json:
        print_json([], slides=[str(path) for path in written])
    else:
        print(*written, sep="\n")
