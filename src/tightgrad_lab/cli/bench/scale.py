"""`tightgrad bench scale`."""

import sys
from typing import Annotated, Any

import typer

from tightgrad_lab.cli.bench.link import parse_rate
from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import print_json
from tightgrad_lab.cli.terminal.units import nbytes_text, seconds_text
from tightgrad_lab.errors import ArgumentError


def scale(
    parameters: Annotated[float, typer.Option(min=1.0, help="Assume a model with this many parameters.")] = 25e6,
    step_seconds: Annotated[
        float, typer.Option(min=0.0, help="Assume that a rank computes this many seconds a step.")
    ] = 0.5,
    rate: Annotated[str, typer.Option(help="Assume this rate of a node's link to the others.")] = "10gbit",
    latency_ms: Annotated[
        float, typer.Option(min=0.0, help="Assume this latency of a message between nodes, in milliseconds.")
    ] = 0.05,
    inside: Annotated[str, typer.Option(help="Assume this rate of the link between ranks of a node.")] = "200gbit",
    inside_latency_ms: Annotated[
        float, typer.Option(min=0.0, help="Assume this latency of a message inside a node, in milliseconds.")
    ] = 0.01,
    ranks_per_node: Annotated[int, typer.Option(min=1, help="Put this many ranks on a node.")] = 8,
    as_json: Json = False,
) -> None:
    """The [bold]cost model to 4096 ranks[/]: two-shot, gather, hierarchical, PowerSGD, and where each stops paying.

    What a rank computes is measured here; the network is the model of docs/cost-model.md.
    """
    outer, inner = parse_rate(rate), parse_rate(inside)
    if outer is None or inner is None:
        raise ArgumentError("--rate and --inside need numbers here, for instance 10gbit.")
    import torch

    from tightgrad_lab.environment import environment
    from tightgrad_lab.planning.link import Link
    from tightgrad_lab.planning.scale import Machine, run

    torch.set_num_threads(1)
    machine = Machine(
        round(parameters),
        step_seconds,
        Link(latency_ms / 1000, outer / 8),
        Link(inside_latency_ms / 1000, inner / 8),
        ranks_per_node,
    )
    found = run(machine, progress=lambda line: print(line, file=sys.stderr))
    if as_json:
        print_json(found.pop("rows"), environment("cpu"), **found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(row["plan"] for row in found["rows"]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("ranks", *names):
        table.add_column(column, justify="right")
    for ranks in dict.fromkeys(row["ranks"] for row in found["rows"]):
        cells = {row["plan"]: row for row in found["rows"] if row["ranks"] == ranks}
        texts = (
            f"{seconds_text(cells[name]['predicted_step_seconds'])}, {nbytes_text(cells[name]['wire_bytes_per_rank'])}"
            for name in names
        )
        table.add_row(str(ranks), *texts)
    Console(highlight=False).print(table)
    for name, ranks in found["pays_at"].items():
        text = f"pays at {', '.join(map(str, ranks))} ranks" if ranks else "pays nowhere"
        print(f"{name}: {text}")
