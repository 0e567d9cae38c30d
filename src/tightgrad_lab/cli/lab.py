"""`tightgrad lab`: train the case studies, write runs/, build the report."""

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from tightgrad_lab.cases import CASES, check_case
from tightgrad_lab.cli.examples import show_examples
from tightgrad_lab.cli.experiments import run_experiments
from tightgrad_lab.cli.terminal.options import REPORT, RUNS, Json, Report, Runs
from tightgrad_lab.cli.terminal.output import build_report, build_slides, print_json
from tightgrad_lab.cli.terminal.rows import print_rows
from tightgrad_lab.errors import ArgumentError, RunError
from tightgrad_lab.schema import COMBINATIONS, NUMBERS

LOCAL_RANKS = 2


def lab(
    cases: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CASE]...", help=f"Train these case studies: {', '.join(CASES)}. Default: all."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="Measure only this figure and table, 1 to 17 or a name; may be repeated."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train on the full data, longer, with three seeds.")] = False,
    variant: Annotated[str | None, typer.Option(help="Train only this model and data set of the case.")] = None,
    combination: Annotated[
        list[str] | None,
        typer.Option(help="Run only this combination, such as none or clip+compress; may be repeated."),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Start this many local ranks over gloo. Default: {LOCAL_RANKS}. torchrun brings its own."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Run each combination this many times.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Train for this many passes over the data.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from a stopped run's newest checkpoint.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure again what has not changed.")] = False,
    show: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Train nothing: show N predictions of a trained model.")
    ] = None,
    runs: Runs = RUNS,
    report: Report = REPORT,
    as_json: Json = False,
) -> None:
    """Train the [bold]case studies[/] on real data, run the handbook's experiments, and build the report.

    Each case runs in all eight combinations of clip, accumulate and compress. Without arguments, everything is run.
    What is finished, and unchanged since, is not run again.
    """
    if variant is not None or show is not None:
        _one_case(cases, "--variant" if show is None else "--show")
    chosen, names = _chosen(cases, only)
    if show is not None:
        show_examples(chosen[0], variant, full, show, runs, as_json)
        return
    num_ranks = _num_ranks(ranks)
    asked: dict[str, Any] = {"--full": full, "--variant": variant, "--combination": combination}
    asked |= {"--ranks": ranks, "--seeds": seeds, "--epochs": epochs}
    rows = _train(chosen, asked, num_ranks, runs, resume=resume, again=again) if chosen else []
    if int(os.environ.get("RANK", 0)) > 0:
        return
    outcomes, failures = run_experiments(names, runs, full=full, again=again)
    _hand_out(runs)
    page = build_report(runs, report)
    build_slides(runs, report)
    if as_json:
        about = [
            {"pair": NUMBERS.get(name), "name": name, "status": found.status, "seconds": found.seconds}
            for name, found in outcomes
        ]
        environment = _environment(runs) if rows else None
        print_json([row for _, row in rows], environment, experiments=about, report=str(page))
    else:
        print_rows(rows)
        print(page)
    if failures:
        raise RunError(" ".join(failures))


def _hand_out(runs: Path) -> None:
    from tightgrad_lab.experiments.handout import write_handout

    write_handout(runs)


def _one_case(cases: list[str] | None, option: str) -> None:
    if len(cases or ()) != 1:
        raise ArgumentError(f"{option} is about one case; name it: {', '.join(CASES)}.")


def _chosen(cases: list[str] | None, only: list[str] | None) -> tuple[list[str], list[str]]:
    """The cases and the experiments to run: all of both if nothing is named."""
    from tightgrad_lab.experiments.catalogue import CASES_OF_PAIR, name_of, names

    if only and under_launcher():
        raise ArgumentError("--only runs experiments, which start ranks of their own; leave torchrun out.")
    asked = [name_of(one) for one in only or ()]
    everything = not cases and not only
    named = [check_case(case) for case in (CASES if everything else cases or ())]
    named += [case for name in asked for case in CASES_OF_PAIR.get(name, ())]
    chosen = list(dict.fromkeys(named))
    if everything and not under_launcher():
        return chosen, list(names())
    return chosen, [name for name in dict.fromkeys(asked) if name not in CASES_OF_PAIR]


def under_launcher() -> bool:
    """Whether this process is one of several ranks that a launcher started."""
    return "WORLD_SIZE" in os.environ


def _train(
    cases: list[str], asked: dict[str, Any], ranks: int, runs: Path, *, resume: bool, again: bool
) -> list[tuple[str, dict[str, Any]]]:
    """Train; return a title and a row of each run (on rank 0)."""
    from tightgrad_lab.cli.terminal.progress import job_progress
    from tightgrad_lab.experiments.factorial import (
        COMPARED,
        case_settings,
        check_combinations,
        make_jobs,
        other_variants,
        run_jobs,
    )
    from tightgrad_lab.experiments.variants import write_variants

    jobs = []
    for case in cases:
        others = [] if asked["--variant"] else other_variants(case, full=asked["--full"])
        for variant in (asked["--variant"], *others):
            settings = case_settings(
                case, full=asked["--full"], seeds=asked["--seeds"], epochs=asked["--epochs"], variant=variant
            )
            combinations = check_combinations(asked["--combination"]) or (
                COMPARED if variant in others else COMBINATIONS
            )
            command = _command(case, asked)
            jobs += make_jobs(
                case, settings, ranks, runs, command, resume=resume, again=again, combinations=combinations
            )
    titles = [f"{job.case}: {job.settings.variant}" for job in jobs]
    if int(os.environ.get("RANK", 0)) > 0:
        rows = run_jobs(jobs, ranks, lambda message: None)
    else:
        with job_progress(jobs) as receive:
            rows = run_jobs(jobs, ranks, receive)
        for case in cases:
            write_variants(runs, case)
    return list(zip(titles, rows, strict=bool(rows)))


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
        for one in value if isinstance(value, list) else [value]:
            words += [option] if one is True else [option, str(one)] if one else []
    return shlex.join(words)


def _environment(runs: Path) -> dict[str, object]:
    """Of the run that was measured last."""
    newest = max(runs.rglob("environment.json"), key=lambda path: path.stat().st_mtime)
    found: dict[str, object] = json.loads(newest.read_text(encoding="utf-8"))
    return found
