"""`tightgrad lab`: train the case studies, write runs/, build the report."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tightgrad_lab.cases import CASES, check_case
from tightgrad_lab.cli.experiments import run_experiments
from tightgrad_lab.cli.options import REPORT, RUNS, Json, Report, Runs
from tightgrad_lab.cli.output import build_report, print_json
from tightgrad_lab.errors import ArgumentError, RunError

LOCAL_RANKS = 2


def lab(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help=f"Case studies: {', '.join(CASES)}. All if none.")
    ] = None,
    only: Annotated[
        list[int] | None, typer.Option(min=1, max=17, help="Only this figure and table, 1 to 17; may be repeated.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Longer training and three seeds.")] = False,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help=f"Local ranks over gloo, {LOCAL_RANKS} if not given. torchrun brings its own."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each combination.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what has not changed.")] = False,
    runs: Runs = RUNS,
    report: Report = REPORT,
    as_json: Json = False,
) -> None:
    """Train the [bold]case studies[/] on real data, run the handbook's experiments, and build the report.

    Each case runs in all eight combinations of clip, accumulate and compress. Without arguments, everything is run.
    """
    chosen, numbers = _chosen(cases, only)
    num_ranks = _num_ranks(ranks)
    asked = {"--full": full, "--ranks": ranks, "--seeds": seeds, "--epochs": epochs}
    rows = _train(chosen, asked, num_ranks, runs) if chosen else []
    if int(os.environ.get("RANK", 0)) > 0:
        return
    outcomes, failures = run_experiments(numbers, runs, full=full, again=again)
    _hand_out(runs)
    page = build_report(runs, report)
    if as_json:
        about = [{"pair": number, "status": found.status, "seconds": found.seconds} for number, found in outcomes]
        environment = _environment(runs, rows[0]) if rows else None
        print_json(rows, environment, experiments=about, report=str(page))
    else:
        _print_table(rows)
        print(page)
    if failures:
        raise RunError(" ".join(failures))


def _hand_out(runs: Path) -> None:
    from tightgrad_lab.experiments.handout import write_handout

    write_handout(runs)


def _chosen(cases: list[str] | None, only: list[int] | None) -> tuple[list[str], list[int]]:
    """The cases and the experiments to run: all of both if nothing is named."""
    from tightgrad_lab.experiments.catalogue import CASES_OF_PAIR, numbers

    if only and under_launcher():
        raise ArgumentError("--only runs experiments, which start ranks of their own; leave torchrun out.")
    everything = not cases and not only
    named = [check_case(case) for case in (CASES if everything else cases or ())]
    named += [case for number in only or () for case in CASES_OF_PAIR.get(number, ())]
    chosen = list(dict.fromkeys(named))
    if everything and not under_launcher():
        return chosen, list(numbers())
    return chosen, [number for number in dict.fromkeys(only or ()) if number not in CASES_OF_PAIR]


def under_launcher() -> bool:
    """Whether this process is one of several ranks that a launcher started."""
    return "WORLD_SIZE" in os.environ


def _train(cases: list[str], asked: dict[str, Any], ranks: int, runs: Path) -> list[dict[str, Any]]:
    from tightgrad_lab.cli.progress import job_progress
    from tightgrad_lab.experiments.factorial import case_settings, make_jobs, run_jobs

    jobs = []
    for case in cases:
        settings = case_settings(case, full=asked["--full"], seeds=asked["--seeds"], epochs=asked["--epochs"])
        jobs += make_jobs(case, settings, ranks, runs, _command(case, asked))
    if int(os.environ.get("RANK", 0)) > 0:
        return run_jobs(jobs, ranks, lambda message: None)
    with job_progress(jobs) as receive:
        return run_jobs(jobs, ranks, receive)


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


def _environment(runs: Path, row: dict[str, Any]) -> dict[str, object]:
    import json

    path = runs / row["case"] / row["combination"] / f"seed{row['seed']}" / "environment.json"
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
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
