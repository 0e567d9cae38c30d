"""Ranks that may hang or die: each in a process of its own, and what became of it."""

import json
import re
import signal
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

START_SECONDS = 90.0  # for imports, on a busy machine


def outcomes(
    world_size: int, body: Callable[..., str], *args: Any, seconds: float, collective_seconds: float = 300.0
) -> list[str]:
    """By rank: what `body(*args)` returned, the error's name, the signal that ended it, or "hangs" after `seconds`.

    Args:
        world_size: number of processes.
        body: a module-level function, run inside a gloo process group.
        args: of body.
        seconds: how long all may take once they have met.
        collective_seconds: how long one collective may wait.
    """
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            context.Process(target=_run, args=(folder, rank, world_size, collective_seconds, body, args), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            _wait(lambda: all((folder / f"met{rank}").exists() for rank in range(world_size)), START_SECONDS)
            # Of a process that has said what it has to say, the end may still hang.
            _wait(
                lambda: all(
                    (folder / f"outcome{rank}").exists() or not process.is_alive()
                    for rank, process in enumerate(processes)
                ),
                seconds,
            )
            return [_outcome(folder / f"outcome{rank}", process) for rank, process in enumerate(processes)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def first_finished(
    world_size: int, body: Callable[..., str], *args: Any, seconds: float, attempts: int = 3
) -> tuple[Any, list[str]]:
    """What rank 0's `body` returned as JSON, of the first of a few attempts that did not hang or die; all outcomes."""
    tried = []
    for _ in range(attempts):
        results = outcomes(world_size, body, *args, seconds=seconds)
        if all(result.startswith(("[", "{")) for result in results):
            return json.loads(results[0]), tried
        tried += results
    return None, tried


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)


def _outcome(path: Path, process: Any) -> str:
    if path.exists():
        return path.read_text()
    if process.is_alive():
        return "hangs"
    return signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit code {process.exitcode}"


def _named(error: Exception) -> str:
    """Its name, and what torch wrapped: the first error of a callback, or the end of the wait."""
    text = str(error)
    if "imed out" in text or "imeout" in text:
        return f"{type(error).__name__} (time-out)"
    inner = re.search(r"\b(?!RuntimeError)[A-Z]\w+Error\b", text)
    return f"{type(error).__name__} ({inner[0]})" if inner else type(error).__name__


def _run(
    folder: Path, rank: int, world_size: int, collective_seconds: float, body: Callable[..., str], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=collective_seconds),
    )
    dist.barrier()
    (folder / f"met{rank}").touch()
    try:
        outcome = body(*args)
    except Exception as error:
        outcome = _named(error)
    (folder / f"writing{rank}").write_text(outcome)
    (folder / f"writing{rank}").rename(folder / f"outcome{rank}")
