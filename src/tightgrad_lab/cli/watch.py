"""`tightgrad watch`: the newest record of each rank of a run, in a table that follows the run."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from rich.table import Table

TAIL_NBYTES = 1 << 16
"""More than a record takes."""
COLUMNS = ("rank", "step", "loss", "norm", "clip", "sent", "residual", "stages", "memory", "silent")


def watch(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Read the files that `tg.records.Jsonl` writes in this folder.")
    ],
    every: Annotated[float, typer.Option(min=0.05, help="Read the files again after this many seconds.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the table once and end, as it does in a pipe.")] = False,
) -> None:
    """Show the newest record of each rank of a [bold]run[/] in a live table; end it with Ctrl-C.

    It reads the run's files and sends nothing, so it may run beside the training or after it. "stages" are the seconds
    that the last step spent in TightGrad's stages, "silent" those since the rank has written.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once or not console.is_terminal:
        console.print(table(run, time.time()))
        return
    with Live(table(run, time.time()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(table(run, time.time()), refresh=True)


def table(run: Path, now: float) -> "Table":
    """Build the table of what has been written up to now, in seconds since 1970.

    Raises:
        ArgumentError: nothing has been written there.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    from tightgrad_lab.doctor.read import rank_files

    columns = (Column(name, no_wrap=True) for name in COLUMNS)
    found = Table(*columns, title=str(run), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for rank, path in rank_files(run).items():
        found.add_row(str(rank), *_cells(newest(path)), f"{max(0.0, now - path.stat().st_mtime):.0f} s")
    if not found.rows:
        raise ArgumentError(
            f"{run} has no records; write them with tg.attach(..., records=[tg.records.Jsonl(folder)]) on every rank."
        )
    return found


def newest(path: Path) -> dict[str, Any]:
    """Return the last whole line of a rank's file, however long that is; empty if there is none yet."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_NBYTES))
        lines = file.read().split(b"\n")[:-1]  # what is behind the last line break is being written
    try:
        line: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:
        raise ArgumentError(f"{path}: its last line is not a step record.") from None
    return line


def _cells(record: dict[str, Any]) -> list[str]:
    """The columns of one record; what was not measured is a dash."""
    from tightgrad.records.terminal import nbytes_text

    if "error" in record:
        return [record["error"], *["-"] * (len(COLUMNS) - 3)]
    step = f"{record.get('step', '-')}" + (f" ({record['skip_reason']})" if record.get("skipped") else "")
    stages = record.get("stage_seconds")
    numbers = [record.get(name) for name in ("loss", "grad_norm", "clip_coef")]
    sent, residual, memory = (record.get(name) for name in ("wire_bytes", "residual_norm", "memory_bytes"))
    return [
        step,
        *("-" if number is None else f"{number:.3g}" for number in numbers),
        "-" if sent is None else nbytes_text(sent),
        "-" if residual is None else f"{residual:.3g}",
        f"{sum(stages.values()):.3g} s" if stages else "-",
        "-" if memory is None else nbytes_text(memory),
    ]
