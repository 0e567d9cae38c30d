"""Progress of the lab, on stderr: one bar with the time left, and one line for each finished run."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tightgrad_lab.cli.terminal.units import metric_text, nbytes_text, seconds_text
from tightgrad_lab.schema import NUMBERS

if TYPE_CHECKING:
    from tightgrad_lab.experiments.factorial import Job, Message

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def job_progress(jobs: "list[Job]") -> "Iterator[Callable[[Message], None]]":
    """Show how far the jobs are while the block runs; yields the receiver of their messages."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left[/]"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    tell = _lines_now_and_then(console)
    with Progress(*columns, console=console, expand=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting ranks", total=len(jobs))
        done = 0

        def receive(message: "Message") -> None:
            nonlocal done
            job, now = jobs[message.job], message.progress
            if message.row is not None:
                done += 1
                progress.console.print(_finished(job, message.row, message.unchanged), highlight=False)
                progress.update(task, completed=done)
            elif now is not None:
                progress.update(task, completed=done + now.step / now.steps, description=_running(job))
                run = f"{job.case} {job.combination} seed {job.seed}"
                tell(f"{done} of {len(jobs)} runs; {run}, step {now.step} of {now.steps}")

        yield receive


@contextmanager
def experiment_progress(
    names: list[str],
) -> "Iterator[tuple[Console, Callable[[str], Callable[[float, str], None]]]]":
    """Show how far experiments are; yields the console, and what starts a pair: it returns the receiver of progress."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left[/]"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    tell = _lines_now_and_then(console)
    with Progress(*columns, console=console, expand=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=len(names))

        def start(name: str) -> Callable[[float, str], None]:
            place = names.index(name)
            progress.update(task, completed=place, description=titled(name))
            tell(f"{place} of {len(names)} experiments; {titled(name)}")

            def report(done: float, text: str) -> None:
                tell(f"{place} of {len(names)} experiments; {titled(name)}: {done:.0%}, {text}")
                progress.update(task, completed=place + min(1.0, done), description=f"{titled(name)}: {text}")

            return report

        yield progress.console, start


def titled(name: str) -> str:
    """Return number and name of a pair of the page, such as " 6 link_speeds"; a study has no number."""
    return f"{NUMBERS.get(name, ''):>2} {name}"


@contextmanager
def share_progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show one bar while the block runs; yields what takes the share that is done and what is being done.

    Where stderr is no terminal, a line at most every five seconds.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        tell = _lines_now_and_then(console)
        yield lambda done, text: tell(f"{title}: {done:.0%}, {text}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TimeElapsedColumn())
    with Progress(*columns, console=console, expand=True, transient=True) as progress:
        task = progress.add_task(title, total=1.0)

        def report(done: float, text: str) -> None:
            progress.update(task, completed=done, description=f"{title}: {text}")

        yield report


def _lines_now_and_then(console: Console) -> Callable[[str], None]:
    """Return what prints a line at most every five seconds where `console` is no terminal, and nothing on one."""
    last = -math.inf

    def tell(line: str) -> None:
        nonlocal last
        if not console.is_terminal and time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    return tell


def _running(job: "Job") -> str:
    return f"{job.case} {job.settings.variant} [bold]{job.combination}[/] seed {job.seed}"


def _finished(job: "Job", row: dict[str, object], unchanged: bool) -> str:
    how = "[dim]unchanged[/]" if unchanged else "[green]done[/]     "
    return (
        f"{how} {job.case} {job.settings.variant:<12} {job.combination:<24} seed {job.seed}  "
        f"{metric_text(row)}  {nbytes_text(row['wire_bytes'])}  {seconds_text(row['step_seconds'])}/step"
    )
