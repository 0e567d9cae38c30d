"""Programs run as `python program.py` and torchrun run them, in processes that have imported torch already.

To import it takes longer than most programs run. The first line of a test's own is what such a process does first.
"""

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.distributed import TCPStore

from support.waiting import patience
from tightgrad_lab.forking import process_context

LOCALHOST = "127.0.0.1"


def run_program(
    code: str,
    where: Path,
    environment: Mapping[str, str],
    *arguments: str,
    ranks: int | None = None,
    seconds: float = 150,
) -> subprocess.CompletedProcess[str]:
    """Run a program from its first line to its last.

    Args:
        code: of the program, which is written to `script.py`.
        where: the folder that it runs in.
        environment: all of its variables.
        arguments: of the program.
        ranks: how many processes, with what torchrun tells each; None is one process that nothing launched.
        seconds: that it takes less than on a quiet machine.

    Returns:
        What all printed, rank after rank, and the first exit code that is not 0.
    """
    (where / "script.py").write_text(code, encoding="utf-8")
    store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False) if ranks else None
    launched = [_launched(rank, ranks, store.port) if ranks and store else {} for rank in range(ranks or 1)]
    with tempfile.TemporaryDirectory() as name:
        said = [Path(name) / str(rank) for rank in range(len(launched))]
        processes = [
            process_context().Process(target=_run, args=(where, {**environment, **own}, arguments, to))
            for own, to in zip(launched, said, strict=True)
        ]
        try:
            for process in processes:
                process.start()
            code_of_all = _wait(processes, time.monotonic() + patience(seconds))
        finally:
            for process in processes:
                process.kill()
                process.join()
        out, err = ("".join(_read(to.with_suffix(kind)) for to in said) for kind in (".out", ".err"))
    return subprocess.CompletedProcess(["script.py", *arguments], code_of_all, out, err)


def _launched(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank; the store is that of whoever launches."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    numbers |= {"GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "ROLE_RANK": rank, "ROLE_WORLD_SIZE": ranks}
    store = {"MASTER_ADDR": LOCALHOST, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return {name: str(number) for name, number in numbers.items()} | store


def _wait(processes: list[BaseProcess], deadline: float) -> int:
    """Until all have ended, or one has failed: the others may wait for it."""
    running = list(processes)
    while running and time.monotonic() < deadline:
        wait([process.sentinel for process in running], timeout=deadline - time.monotonic())
        running = [process for process in running if process.exitcode is None]
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed:
            return failed[0]
    assert not running, "the program has not come to an end"
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _run(where: Path, environment: Mapping[str, str], arguments: tuple[str, ...], said: Path) -> None:
    for number, kind in ((1, ".out"), (2, ".err")):
        file = os.open(said.with_suffix(kind), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.path.insert(0, str(where))
    sys.argv = ["script.py", *arguments]
    try:
        runpy.run_path("script.py", run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # Python's own (3.14): multiprocessing ends its processes without
        sys.stdout.flush()
