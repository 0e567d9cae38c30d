"""`tightgrad bench link` and `tightgrad bench headline`."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tightgrad_lab.cli.terminal.options import Json
from tightgrad_lab.cli.terminal.output import print_json
from tightgrad_lab.cli.terminal.units import nbytes_text, seconds_text
from tightgrad_lab.errors import ArgumentError

_PREFIXES = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
UNLIMITED = "unlimited"
FIGURE = Path("headline.svg")


def parse_rate(text: str) -> int | None:
    """Bits per second of a rate such as "10mbit"; None for "unlimited".

    Raises:
        ArgumentError: it is neither.
    """
    if text == UNLIMITED:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", text.lower())
    if not found or float(found[1]) == 0:
        raise ArgumentError(f"--rate {text} is no rate; write for instance 10mbit, 1gbit or {UNLIMITED}.")
    return round(float(found[1]) * _PREFIXES[found[2]])


def link(
    rate: Annotated[
        list[str] | None, typer.Option(help="Limit each link to this rate: 10mbit, 1gbit, unlimited; may be repeated.")
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=2, max=64, help="Start this many processes, each in a network namespace.")
    ] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Measure this many steps of each row.")] = 9,
    seconds: Annotated[
        float, typer.Option(min=1.0, help="Begin no further step of a row after this many seconds.")
    ] = 60.0,
    row: Annotated[list[str] | None, typer.Option(help="Measure only this row; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """[bold]Training over slow links[/]: every recommended plan next to DDP, torch's hooks and no communication.

    Needs root and iproute2: links are network namespaces of its own, shaped by tc.
    """
    rates = [parse_rate(text) for text in rate or ["100mbit"]]
    from tightgrad_lab.bench import link as measurement
    from tightgrad_lab.environment import environment
    from tightgrad_lab.network import why_not

    lacking = why_not()
    if lacking:
        raise ArgumentError(f"{lacking}.")
    timing = measurement.Timing(steps, seconds)
    peers, plans = measurement.chosen(row)
    rows: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []
    for bits in rates:
        found = measurement.run(
            bits, ranks, timing=timing, plans=plans, peers=peers, progress=lambda line: print(line, file=sys.stderr)
        )
        rows += found["rows"]
        links.append({"rate_bits_per_second": bits} | {key: found[key] for key in found if key != "rows"})
    if as_json:
        print_json(rows, environment("cpu", "gloo"), links=links)
    else:
        _print_rows(rows)


def headline(
    draw: Annotated[
        Path | None,
        typer.Option(help="Draw what an earlier run printed with --json, and measure nothing.", dir_okay=False),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Write the figure of --draw into this file, SVG or PNG.", dir_okay=False)
    ] = FIGURE,
    as_json: Json = False,
) -> None:
    """[bold]A small GPT over 10 Mbit/s[/], dense and compressed, to the same loss. Takes about half an hour.

    Needs root and iproute2, as `bench link`.
    """
    if draw is not None:
        _draw(draw, out)
        return
    from tightgrad_lab.bench import headline as measurement
    from tightgrad_lab.environment import environment
    from tightgrad_lab.network import why_not

    lacking = why_not()
    if lacking:
        raise ArgumentError(f"{lacking}.")
    found = measurement.run(measurement.Settings(), progress=lambda line: print(line, file=sys.stderr))
    rows = measurement.rows(found)
    if as_json:
        print_json(rows, environment("cpu", "gloo"), **found)
    else:
        _print_headline(rows, found["summary"])


def _draw(source: Path, out: Path) -> None:
    import json

    from tightgrad_lab.report.drawing import figures
    from tightgrad_lab.report.drawing.headline import draw

    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        figure = draw(found)
    except FileNotFoundError:
        raise ArgumentError(f"there is no file {source}; write one with `tightgrad bench headline --json`.") from None
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(f"{source} is not what `tightgrad bench headline --json` prints: {error}.") from error
    if out.suffix == ".png":
        figures.save_png(figure, out)
    else:
        out.write_text(figures.to_svg(figure), encoding="utf-8")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("link", "ranks", "plan", "step", "/ no communication", "sent", "interface"):
        table.add_column(column, justify="left" if column == "plan" else "right")
    for row in rows:
        numbers = (
            (
                seconds_text(row["step_seconds"]),
                f"{row['ratio_to_no_communication']:.2f}",
                nbytes_text(row["wire_bytes"]) if row["wire_bytes"] is not None else "-",
                nbytes_text(row["interface_bytes"]),
            )
            if row["error"] is None
            else (row["error"], "-", "-", "-")
        )
        table.add_row(rate_text(row["rate_bits_per_second"]), str(row["ranks"]), row["plan"], *numbers)
    Console().print(table)


def _print_headline(rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    for row in rows:
        print(
            f"{row['plan']}: {row['bits_per_byte']:.3f} bits per byte, {seconds_text(row['step_seconds'])} a step, "
            f"{nbytes_text(row['wire_bytes'])} sent a step, {seconds_text(row['training_seconds'])} in all"
        )
    noise = "within" if about["is_within_noise"] else "outside"
    print(f"{about['speedup']:.1f} times faster, {noise} the noise of seeds")


def rate_text(bits_per_second: int | None) -> str:
    """Mbit/s, or that it is not limited."""
    return UNLIMITED if bits_per_second is None else f"{bits_per_second / 1e6:g} Mbit/s"
