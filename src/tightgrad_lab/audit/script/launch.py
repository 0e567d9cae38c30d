"""Starts the ranks of a script, waits for them, and gathers their ledgers."""

import os
import pickle
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

from tightgrad_lab.audit.crash import is_from_another_rank
from tightgrad_lab.audit.script.records import Ledger
from tightgrad_lab.audit.script.settings import Settings
from tightgrad_lab.audit.script.surroundings.written import remove_new
from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.signals import ended_by_signals

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
LONGER_SECONDS = 90.0
"""For ranks that have something more to do, such as drawing samples, when another has ended as it should."""
READS = 64
"""Of a rank's standard input that find its end."""
Report = Callable[[float, str], None]


def run_ranks_of(settings: Settings, ranks: int, report: Report) -> list[Ledger]:
    """Run a script on local ranks, as torchrun would; one rank as plain `python` does.

    Raises:
        ArgumentError: it cannot be run; the message has file and line of the script's code, or what to install.
    """
    surroundings = {"launched": ranks > 1, "cuda": False}
    while True:
        try:
            return _run(settings, ranks, report, **surroundings)
        except _NeedsError as needed:
            surroundings[needed.what] = True


class _NeedsError(Exception):
    """The script has to be run once more, with something around it that it asks for: torchrun's names, or CUDA."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def _run(settings: Settings, ranks: int, report: Report, *, launched: bool, cuda: bool) -> list[Ledger]:
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="tightgrad-") as name:
        folder = Path(name)
        (folder / "settings.json").write_text(settings.to_json(), encoding="utf-8")
        port = _free_port()
        processes = []
        outer, inner = _terminal()
        try:
            for rank in range(ranks):
                log = (folder / f"log.{rank}").open("wb")
                command = [sys.executable, "-m", "tightgrad_lab.audit.script.child", name]
                processes.append(
                    subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=_environment(rank, ranks, port, launched=launched, cuda=cuda),
                        start_new_session=True,
                        stdin=inner,
                    )
                )
                log.close()
            _wait(folder, processes, settings, report)
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            for process in processes:
                process.wait()
            remove_new(folder.glob("written.*"))
            os.close(outer)
            os.close(inner)
        return _ledgers(folder, settings, ranks, launched=launched, cuda=cuda)


def _environment(rank: int, ranks: int, port: int, *, launched: bool, cuda: bool) -> dict[str, str]:
    values = {
        **os.environ,
        "TIGHTGRAD_RANK": str(rank),
        "TIGHTGRAD_RANKS": str(ranks),
        "TIGHTGRAD_PRETEND_CUDA": "1" if cuda else "",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "WANDB_MODE": "disabled",
        "WANDB_DISABLED": "true",
        "TOKENIZERS_PARALLELISM": "false",
        "GLOO_SOCKET_IFNAME": _loopback(),
        "PYTHONUNBUFFERED": "1",
        "TIGHTGRAD_PARENT": str(os.getpid()),
    }
    if launched:
        values |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GROUP_RANK": "0",
            "TORCHELASTIC_RUN_ID": "audit",
        }
    return values


def _terminal() -> tuple[int, int]:
    """A terminal as the ranks' standard input, since scripts ask for its width; whoever reads it is at its end."""
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    os.write(outer, termios.tcgetattr(inner)[6][termios.VEOF] * READS)
    return outer, inner


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    return names[0] if names else "lo"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(folder: Path, processes: list["subprocess.Popen[bytes]"], settings: Settings, report: Report) -> None:
    words = f"{len(processes)} rank{'s' if len(processes) > 1 else ''}"
    began = time.monotonic()
    first_end = None
    while any(process.poll() is None for process in processes):
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        done = int(_text(folder / "progress.0") or 0)
        reached = f"step {done} of {settings.steps}" if done else f"no step yet, {now - began:.0f} s"
        report(min(1.0, done / settings.steps), f"{words}, {reached}")
        if first_end is None and any(process.poll() is not None for process in processes):
            first_end = now
        if first_end is not None and now - first_end > (GRACE_SECONDS if _failed(folder) else LONGER_SECONDS):
            return  # the others wait for one that has ended
        if now - began > settings.limit_seconds:
            raise ArgumentError(
                f"with {words}: {settings.name} has taken {done} of {settings.steps} steps in "
                f"{settings.limit_seconds:.0f} seconds; give it less to do (its own arguments, --shrink, --batches, "
                "--steps) or more time (--limit)."
            )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _failed(folder: Path) -> bool:
    """Whether those that have ended did so with an error, or without a word."""
    found = [_read(path) for path in folder.glob("ledger.[0-9]*") if path.suffix != ".part"]
    return not found or any(ledger.error for ledger in found)


def _read(path: Path) -> Ledger:
    ledger: Ledger = pickle.loads(path.read_bytes())
    return ledger


def _ledgers(folder: Path, settings: Settings, ranks: int, *, launched: bool, cuda: bool) -> list[Ledger]:
    found: list[Ledger] = []
    for rank in range(ranks):
        path = folder / f"ledger.{rank}"
        if path.exists():
            found.append(_read(path))
    if (folder / "elsewhere").exists():
        raise ArgumentError(
            f"with {ranks} rank{'s' if ranks > 1 else ''}: {settings.name} trains in processes that it starts itself; "
            "let it run as under torchrun, where each process calls the training function with its RANK."
        )
    errors = [ledger.error for ledger in found if ledger.error]
    words = f"with {ranks} rank{'s' if ranks > 1 else ''}"
    missing = next((ledger.missing for ledger in found if ledger.missing), "")
    if missing:
        raise ArgumentError(
            f"{words}: {settings.name} needs the package {missing}, which is not installed: install it, or put an "
            f"empty one in its place with --stub {missing.partition('.')[0]}. ({errors[0]})"
        )
    if errors:
        own = next((error for error in errors if not is_from_another_rank(error)), errors[0])
        if not launched and any(name in own for name in ("'RANK'", "'LOCAL_RANK'", "'WORLD_SIZE'")):
            raise _NeedsError("launched")
        if not cuda and re.search("cuda|gpu", re.sub(r"\S+\.py:", "", own), re.IGNORECASE):
            raise _NeedsError("cuda")
        if is_from_another_rank(own):
            _equally_often(folder, ranks, words)
        raise ArgumentError(f"{words}: {own}")
    if len(found) < ranks:
        gone = next(rank for rank in range(ranks) if not (folder / f"ledger.{rank}").exists())
        log = (folder / f"log.{gone}").read_text(errors="replace").strip().splitlines()
        _equally_often(folder, ranks, words)
        raise ArgumentError(f"{words}: rank {gone} ended without a word{f'; last: {log[-1]}' if log else ''}")
    return found


def _equally_often(folder: Path, ranks: int, words: str) -> None:
    """Raise an ArgumentError if a rank has taken fewer steps than another; one apart they may be in passing."""
    done = [int(_text(folder / f"progress.{rank}") or 0) for rank in range(ranks)]
    least = min(done)
    if max(done) > least + 1:
        raise ArgumentError(
            f"{words}: rank {done.index(least)} has taken {least} steps where another has taken {max(done)}; all ranks "
            "must call backward and optimizer.step equally often."
        )
