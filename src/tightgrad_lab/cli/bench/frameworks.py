"""`tightgrad bench frameworks`."""

import sys
from typing import Annotated, Any

import typer

from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import print_json


def frameworks(
    trees: Annotated[int, typer.Option(min=1, help="Draw this many random sets of gradients for each operation.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Time this many runs.")] = 15,
    seed: Annotated[int, typer.Option(min=0, help="Draw the gradients with this seed.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Give torch this many threads; others take what the process may use.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """[bold]Clipping[/] in PyTorch, TensorFlow and JAX/optax, those installed, next to TightGrad's: results, time."""
    import torch

    from tightgrad_lab.bench.frameworks import compare_frameworks, missing_frameworks
    from tightgrad_lab.environment import environment

    torch.set_num_threads(threads)
    rows = compare_frameworks(
        seed, num_trees=trees, repeats=repeats, progress=lambda line: print(line, file=sys.stderr)
    )
    if as_json:
        print_json(rows, environment("cpu", "none"), missing=missing_frameworks(), seed=seed, trees=trees)
    else:
        _print_table(rows)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("operation", "difference", "its error", "TightGrad's", "correct over", "ms", "TightGrad's ms"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    for row in rows:
        table.add_row(
            row["operation"],
            *(_error(row[key]) for key in ("largest_relative_difference", "framework_error", "tightgrad_error")),
            f"{row['smallest_scale']:.0e} to {row['largest_scale']:.0e}",
            f"{row['seconds'] * 1e3:.2f}",
            f"{row['tightgrad_seconds'] * 1e3:.2f}",
        )
    Console().print(table)


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
