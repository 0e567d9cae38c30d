"""`tightgrad bench accumulate`."""

import sys
from typing import Annotated, Any

import typer

from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import print_json
from tightgrad_lab.cli.terminal.units import nbytes_text, seconds_text
from tightgrad_lab.errors import ArgumentError

ROUNDS_HELP = "Give each loop this many turns of three steps, of which two count."
FETCH_HELP = "Measure only this way to fetch batches: 'window' (with the peers) or 'batch'; may be repeated."
WRAPPER_HELP = "Measure only this wrapper: plain, ddp, 'fsdp2 last' or 'fsdp2 every'; may be repeated."


def accumulate(
    rounds: Annotated[int, typer.Option(min=2, help=ROUNDS_HELP)] = 31,
    ranks: Annotated[int, typer.Option(min=2, help="Start this many local ranks over gloo, for DDP and FSDP2.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Measure everything again in this many fresh processes.")] = 3,
    wrapper: Annotated[list[str] | None, typer.Option(help=WRAPPER_HELP)] = None,
    fetch: Annotated[list[str] | None, typer.Option(help=FETCH_HELP)] = None,
    as_json: Json = False,
) -> None:
    """[bold]Accumulation[/] next to a hand-written loop, Accelerate and Lightning: time, memory, traffic."""
    from tightgrad_lab.bench import accumulate as measurement
    from tightgrad_lab.bench.loops import WRAPPERS
    from tightgrad_lab.environment import environment

    for option, names, known in (("wrapper", wrapper, WRAPPERS), ("fetch", fetch, measurement.FETCHES)):
        for name in names or ():
            if name not in known:
                raise ArgumentError(f"--{option} {name!r} is not known; choose from {', '.join(map(repr, known))}.")
    result = measurement.run(
        wrappers=wrapper or WRAPPERS,
        fetches=fetch or measurement.FETCHES,
        rounds=rounds,
        ranks=ranks,
        repeats=repeats,
        progress=lambda line: print(line, file=sys.stderr),
    )
    if as_json:
        print_json(result["rows"], environment("cpu", "gloo"), missing=result["missing"])
    else:
        _print_table(result["rows"])


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("what", "time / loop's", "/ both", "memory", "sent", "step"):
        is_name = column == "what"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for row in rows:
        table.add_row(
            row["name"].replace(", fetch=batch", " by batch"),
            f"{row['time_ratio_to_loop']:.3f}",
            f"{row['time_ratio_to_both_loops']:.3f}",
            f"{row['peak_memory_ratio_to_loop']:.4f}",
            nbytes_text(row["wire_bytes"]),
            seconds_text(row["step_seconds"]),
        )
    Console().print(table)
