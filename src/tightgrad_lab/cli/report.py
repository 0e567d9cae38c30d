"""`tightgrad report`: rebuild the page from what was measured."""

from tightgrad_lab.cli.terminal.options import REPORT, RUNS, Json, Report, Runs
from tightgrad_lab.cli.terminal.output import build_report, build_slides, print_json
from tightgrad_lab.errors import ArgumentError


def report(runs: Runs = RUNS, report: Report = REPORT, as_json: Json = False) -> None:
    """Rebuild the [bold]report[/] and its slides (Chinese and English) from the files that `tightgrad lab` wrote."""
    if not runs.is_dir():
        raise ArgumentError(f"there is no folder {runs}; run `tightgrad lab` first, or name another with --runs.")
    page = build_report(runs, report)
    build_slides(runs, report)
    if as_json:
        print_json([], report=str(page))
    else:
        print(page)
