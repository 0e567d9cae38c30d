"""`tightgrad slides`: rebuild the lecture's slides from what was measured."""

from tightgrad_lab.cli.options import REPORT, RUNS, Json, Report, Runs
from tightgrad_lab.cli.output import build_slides, print_json
from tightgrad_lab.errors import ArgumentError


def slides(runs: Runs = RUNS, report: Report = REPORT, as_json: Json = False) -> None:
    """Rebuild the [bold]slides[/] of the lecture (slides.zh.html, slides.en.html) from what `tightgrad lab` wrote."""
    if not runs.is_dir():
        raise ArgumentError(f"there is no folder {runs}; run `tightgrad lab` first, or name another with --runs.")
    written = build_slides(runs, report)
    if as_json:
        print_json([], slides=[str(path) for path in written])
    else:
        print(*written, sep="\n")
