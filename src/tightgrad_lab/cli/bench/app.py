"""`tightgrad bench`: reproducible measurements, peers side by side."""

import sys
from typing import Annotated, Any

import typer

from tightgrad_lab.cli.bench.accumulate import accumulate
from tightgrad_lab.cli.bench.codecs import codecs
from tightgrad_lab.cli.bench.device import Device, device_name
from tightgrad_lab.cli.bench.frameworks import frameworks
from tightgrad_lab.cli.bench.link import headline, link
from tightgrad_lab.cli.bench.scale import scale
from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import print_json

THREADS_HELP = (
    "Use this many threads; may be repeated. Default: one, as a rank that shares its cores has, and torch's number."
)
PAIRS_HELP = "Measure this many pairs of runs. Default: 61 of clip_grad_norm, which resolves 1 %, and 9 of the others."

bench = typer.Typer(
    name="bench", help="Measure TightGrad and its peers side by side on this machine.", no_args_is_help=True
)


bench.command()(accumulate)
bench.command()(codecs)
bench.command()(frameworks)
bench.command()(link)
bench.command()(headline)
bench.command()(scale)


@bench.command()
def clip(
    size: Annotated[list[int] | None, typer.Option(help="Clip this many parameters; may be repeated.")] = None,
    tensors: Annotated[
        list[int] | None, typer.Option(help="Spread them over this many tensors; may be repeated.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help=PAIRS_HELP)] = None,
    threads: Annotated[list[int] | None, typer.Option(min=1, help=THREADS_HELP)] = None,
    row: Annotated[list[str] | None, typer.Option(help="Measure these rows only; may be repeated.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """[bold]Clipping[/] next to torch.nn.utils and other libraries: time, and memory traffic."""
    import torch

    from tightgrad_lab.bench import clip as measurement
    from tightgrad_lab.environment import environment

    name = device_name(device)
    usual = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for number in threads or sorted({1, usual} if device == "cpu" else {usual}):
        torch.set_num_threads(number)
        result = measurement.run(
            tuple(size or measurement.SIZES),
            tuple(tensors or measurement.TENSORS),
            repeats,
            device=device,
            names=row or (),
            progress=lambda line, number=number: print(f"threads: {number}, {line}", file=sys.stderr),  # type: ignore[misc]
        )
        rows += result["rows"]
        missing = result["missing"]
    if as_json:
        print_json(rows, environment(name, "none"), missing=missing)
    else:
        _print_table(rows)
        if missing:
            print(f"not installed or not on this device, so not measured: {', '.join(missing)}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("what", "size", "threads", "clips", "time", "quartiles", "bytes"):
        left = column in ("what", "clips")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"] if row["optimizer"] == "none" else f"{row['name']}, {row['optimizer']}",
            f"{row['num_parameters'] / 1e6:g}M in {row['num_tensors']}",
            str(row["threads"]),
            "yes" if row["active"] else "no",
            f"{row['ratio_to_torch']:.3f}",
            "-".join(f"{ratio:.2f}" for ratio in row["ratio_quartiles"]),
            f"{row['memory_bytes_per_parameter']:.1f}",
        )
    Console().print(table)
    print("time: over torch's clip_grad_norm_ (and its fused step); bytes: moved in memory for each parameter")
