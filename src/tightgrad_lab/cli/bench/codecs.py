"""`tightgrad bench codecs`."""

import sys
from typing import Annotated, Any

import typer

from tightgrad_lab.cli.bench.device import Device, device_name
from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import print_json
from tightgrad_lab.cli.terminal.units import nbytes_text


def codecs(
    size: Annotated[int, typer.Option(min=1, help="Encode this many float32 numbers.")] = 25_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Count this many runs of each codec.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Let one process use this many threads.")] = 1,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """[bold]Codecs[/] next to a memory copy and other libraries' codecs: speed, bytes, error."""
    import torch

    from tightgrad_lab.bench import codecs as measurement
    from tightgrad_lab.environment import environment

    name = device_name(device)
    torch.set_num_threads(threads)
    result = measurement.run(size, repeats, device=device, progress=lambda line: print(line, file=sys.stderr))
    if as_json:
        print_json(
            result["rows"],
            environment(name, "none"),
            missing=result["missing"],
            threads=result["threads"],
        )
    else:
        _print_table(result["rows"])
        for name, reason in result["missing"].items():
            print(f"not measured: {name} ({reason})")


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("codec", "bytes", "factor", "encode / copy", "decode / copy", "relative error"):
        table.add_column(column, justify="left" if column == "codec" else "right")
    for row in rows:
        table.add_row(
            ("peer: " if row["peer"] else "") + row["codec"],
            nbytes_text(row["nbytes"]),
            f"{row['compression_factor']:.1f}x",
            _ratio(row["encode_ratio_to_copy"]),
            _ratio(row["decode_ratio_to_copy"]),
            "-" if row["relative_error"] is None else f"{row['relative_error']:.2e}",
        )
    Console().print(table)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
