"""Ranks that may hang or die, each in a process of its own, and what became of them: for other people's code."""

import logging
import re
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tightgrad_lab.forking import end_with_parent, process_context

START_SECONDS = 900.0
POLL_SECONDS = 0.02
HANGS = "hangs"


def outcomes(
    ranks: int, body: Callable[..., str], *args: Any, seconds: float, collective_seconds: float = 300.0
) -> list[str]:
    """By rank: what `body(*args)` returned, the error's name, the signal that ended it, or HANGS.

    Args:
        ranks: number of processes.
        body: a module-level function, run inside a gloo process group with one thread.
        args: of body; must be picklable.
        seconds: how long all may take once they have met.
        collective_seconds: how long one collective may wait.
    """
    context = process_context()
    with tempfile.TemporaryDirectory(prefix="tightgrad-") as name:
        folder = Path(name)
        processes: list[BaseProcess] = [
            context.Process(target=_main, args=(name, rank, ranks, collective_seconds, body, args), daemon=True)
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        try:
            _wait(lambda: all((folder / f"met{rank}").exists() for rank in range(ranks)), processes, START_SECONDS)
            _wait(lambda: all((folder / f"outcome{rank}").exists() for rank in range(ranks)), processes, seconds)
            return [_outcome(folder / f"outcome{rank}", process) for rank, process in enumerate(processes)]
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _wait(done: Callable[[], bool], processes: list[BaseProcess], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _outcome(path: Path, process: BaseProcess) -> str:
    if path.exists():
        return path.read_text(encoding="utf-8")
    if process.exitcode is None:
        return HANGS
    return signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit code {process.exitcode}"


def _main(
    name: str, rank: int, ranks: int, collective_seconds: float, body: Callable[..., str], args: tuple[Any, ...]
) -> None:
    end_with_parent()
    folder = Path(name)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "store").as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=collective_seconds),
    )
    dist.barrier()
    (folder / f"met{rank}").touch()
    try:
        outcome = body(*args)
    except Exception as error:
        outcome = _named(error)
    (folder / f"writing{rank}").write_text(outcome, encoding="utf-8")
    (folder / f"writing{rank}").rename(folder / f"outcome{rank}")


def _named(error: Exception) -> str:
    """Its name, and what torch wrapped: the first error of a callback, or the end of the wait."""
    text = str(error)
    if "imed out" in text or "imeout" in text:
        return f"{type(error).__name__} (time-out)"
    inner = re.search(r"\b(?!RuntimeError)[A-Z]\w+Error\b", text)
    return f"{type(error).__name__} ({inner[0]})" if inner else type(error).__name__
