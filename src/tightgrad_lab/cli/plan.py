"""`tightgrad plan`: which plan to take on this link, this machine, with this model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tightgrad_lab.cli.bench.link import parse_rate
from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import print_json
from tightgrad_lab.cli.terminal.units import nbytes_text, seconds_text
from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from tightgrad_lab.planning.run import Answer


def plan(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE.py]", help="Take model, micro-batches and loss from this file, as `audit` does."),
    ] = None,
    parameters: Annotated[
        float, typer.Option(min=1.0, help="Assume a model with this many parameters, where no FILE is given.")
    ] = 7e6,
    step_seconds: Annotated[
        float,
        typer.Option(min=0.0, help="Assume that a rank computes this many seconds a step, where no FILE is given."),
    ] = 0.5,
    ranks: Annotated[
        int | None,
        typer.Option(min=2, max=64, help="Start this many local ranks, or assume them with --rate. Default: 2."),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Assume a link of this rate, such as 10mbit or 1gbit, instead of measuring one.")
    ] = None,
    latency_ms: Annotated[
        float, typer.Option(min=0.0, help="Assume this latency of a message in milliseconds, with --rate.")
    ] = 0.2,
    memory_gb: Annotated[
        float | None,
        typer.Option(min=0.0, help="Assume this memory per rank in GB. Default: this machine's memory / ranks."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the recommended plan here, as JSON.", dir_okay=False)] = None,
    as_json: Json = False,
) -> None:
    """Measure the [bold]link[/], the codecs and the model here; predict the step of each plan; recommend one, or none.

    With FILE, also the memory of each plan, and the largest micro-batch that fits.

    Start it under torchrun on the machines that will train, or with --ranks on this one.
    """
    world = _ranks(ranks)
    bits = parse_rate(rate) if rate is not None else None
    if rate is not None and bits is None:
        raise ArgumentError("--rate needs a number here, for instance 100mbit; without --rate the link is measured.")
    from tightgrad_lab.environment import environment
    from tightgrad_lab.planning.advise import plan_named
    from tightgrad_lab.planning.link import Link
    from tightgrad_lab.planning.run import Question, answer
    from tightgrad_lab.training.ranks import under_torchrun

    if bits is not None and under_torchrun():
        raise ArgumentError("--rate imagines a link, but torchrun started real ranks; drop one of them.")
    link = None if bits is None else Link(latency_ms / 1000, bits / 8)
    memory = None if memory_gb is None else round(memory_gb * 1e9)
    question = Question(file, round(parameters), step_seconds, world, link, memory)
    found = answer(question, progress=lambda line: print(line, file=sys.stderr))
    if not found:
        return  # another rank speaks
    recommended = plan_named(found.advice.recommended)
    if out is not None:
        out.write_text(recommended.to_json(indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(_rows(found), environment("cpu", "gloo"), **_more(found), plan=recommended.to_config())
    else:
        _print(found)


def _ranks(asked: int | None) -> int:
    import os

    started = os.environ.get("WORLD_SIZE")
    if started is not None and asked is not None and int(started) != asked:
        raise ArgumentError(f"--ranks {asked} contradicts torchrun, which started {started}; drop --ranks.")
    return int(started) if started is not None else asked or 2


def _rows(found: "Answer") -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(row) for row in found.advice.predictions]


def _more(found: "Answer") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "recommended": found.advice.recommended,
        "reason": found.advice.reason,
        "link": asdict(found.link),
        "compute": asdict(found.compute),
        "num_parameters": found.num_parameters,
        "memory": asdict(found.memory) | {"available_bytes": found.available_nbytes},
    }


def _print(found: "Answer") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    mbit = 8 * found.link.bytes_per_second / 1e6
    console.print(
        f"link: {mbit:.4g} Mbit/s, {seconds_text(found.link.latency_seconds)} a message; model: "
        f"{found.num_parameters:,} parameters, {seconds_text(found.compute.seconds)} of computing a step"
    )
    measured = found.memory.activations is not None
    console.print(
        f"memory of a rank: {nbytes_text(found.available_nbytes)}; "
        + (
            f"the micro-batches measured have {found.memory.micro_batch} samples"
            if measured
            else "activations are not in the memory below; they are measured of a FILE.py whose batches have samples"
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("plan", "predicted step", "sent", "memory", "largest micro-batch", "of which"):
        table.add_column(column, justify="left" if column in ("plan", "of which") else "right")
    for row in found.advice.predictions:
        step = seconds_text(row.predicted_step_seconds)
        largest = "-" if row.largest_micro_batch is None else f"{row.largest_micro_batch:,}"
        table.add_row(row.plan, step, nbytes_text(row.wire_bytes), nbytes_text(row.memory_bytes), largest, row.reason)
    console.print(table)
    console.print(f"[bold]recommended[/]: {found.advice.reason}", soft_wrap=True)
