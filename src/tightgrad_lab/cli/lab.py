"""`tightgrad lab`: train the case studies, write runs/, build the report."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tightgrad_lab.cases import CASES, check_case
from tightgrad_lab.cli.options import REPORT, RUNS, Json, Report, Runs
from tightgrad_lab.cli.output import build_report, print_json
from tightgrad_lab.errors import ArgumentError

LOCAL_RANKS = 2


def lab(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help=f"Case studies: {', '.join(CASES)}. All if none.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Longer training and three seeds.")] = False,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help=f"Local ranks over gloo, {LOCAL_RANKS} if not given. torchrun brings its own."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each combination.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    runs: Runs = RUNS,
    report: Report = REPORT,
    as_json: Json = False,
) -> None:
    """Train the [bold]case studies[/] on real data and build the report.

    Each runs in all eight combinations of clip, accumulate and compress.
    """
    chosen = [check_case(case) for case in dict.fromkeys(cases or CASES)]
    num_ranks = _num_ranks(ranks)
    from tightgrad_lab.experiments.factorial import case_settings, make_jobs, run_jobs

    asked = {"--full": full, "--ranks": ranks, "--seeds": seeds, "--epochs": epochs}
    jobs = []
    for case in chosen:
        settings = case_settings(case, full=full, seeds=seeds, epochs=epochs)
        jobs += make_jobs(case, settings, num_ranks, runs, _command(case, asked))
    from tightgrad_lab.cli.progress import job_progress

    if int(os.environ.get("RANK", 0)) > 0:
        run_jobs(jobs, num_ranks, lambda message: None)
        return
    with job_progress(jobs) as receive:
        rows = run_jobs(jobs, num_ranks, receive)
    page = build_report(runs, report)
    if as_json:
        print_json(rows, _environment(jobs[0].folder), report=str(page))
    else:
        _print_table(rows)
        print(page)


def _num_ranks(asked: int | None) -> int:
    started = os.environ.get("WORLD_SIZE")
    if started is None:
        return asked or LOCAL_RANKS
    if asked not in (None, int(started)):
        raise ArgumentError(f"--ranks {asked} but torchrun started {started}; leave --ranks out under torchrun.")
    return int(started)


def _command(case: str, asked: dict[str, Any]) -> str:
    words = ["tightgrad", "lab", case]
    for option, value in asked.items():
        words += [option] if value is True else [option, str(value)] if value else []
    return shlex.join(words)


def _environment(folder: Path) -> dict[str, object]:
    import json

    found: dict[str, object] = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return found


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tightgrad_lab.cli.units import factor_text, metric_text, nbytes_text, seconds_text

    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        several_seeds = len({row["seed"] for row in own}) > 1
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=f"{case}, per rank", title_justify="left"
        )
        table.add_column("combination", no_wrap=True)
        if several_seeds:
            table.add_column("seed", justify="right")
        for heading in (own[0]["metric"], "sent", "factor", "memory", "step", "skips"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in own:
            table.add_row(
                row["combination"],
                *([str(row["seed"])] if several_seeds else []),
                metric_text(row),
                nbytes_text(row["wire_bytes"]),
                factor_text(row["compression_factor"]),
                nbytes_text(row["peak_memory_bytes"]),
                seconds_text(row["step_seconds"]),
                str(row["skipped_steps"]),
            )
        Console().print(table)
