"""Ranks as processes inside the namespaces of a network: gloo over their interfaces, messages over their pipes."""

import base64
import json
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from tightgrad_lab.errors import RunError
from tightgrad_lab.network.namespaces import INTERFACE, Network

STORE_PORT = 29400
POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
_ENDED = object()


@dataclass(frozen=True)
class NetRank:
    """One process of a data-parallel run in a network.

    Args:
        rank: this one.
        ranks: how many.
        rate_bits_per_second: of its link; None is not limited.
    """

    rank: int
    ranks: int
    rate_bits_per_second: int | None


Body = Callable[..., None]
"""Called as body(rank, send, *args) with a `NetRank`; what is sent are JSON values."""


@dataclass(frozen=True)
class Job:
    """What a rank's process is told."""

    rank: NetRank
    address: str
    body: Body
    args: tuple[Any, ...]
    timeout_seconds: float


def run_in_network(
    net: Network, body: Body, args: tuple[Any, ...], receive: Callable[[Any], None], *, timeout_seconds: float
) -> None:
    """Run `body` on every rank, with one thread each and a gloo process group over the network.

    Args:
        net: is up.
        body: a module-level function.
        args: must be picklable.
        receive: called in this thread with each message of any rank.
        timeout_seconds: after which all ranks are killed.

    Raises:
        RunError: a rank failed, or the time is over.
    """
    inbox: queue.Queue[tuple[int, Any]] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="tightgrad-") as folder:
        logs = [open(os.path.join(folder, f"{rank}.log"), "w+b") for rank in range(net.ranks)]  # noqa: SIM115
        processes = [_start(net, rank, body, args, timeout_seconds, logs[rank]) for rank in range(net.ranks)]
        try:
            for rank, process in enumerate(processes):
                threading.Thread(target=_read, args=(rank, process, inbox), daemon=True).start()
            _collect(processes, inbox, receive, logs, timeout_seconds)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()
            for log in logs:
                log.close()


def _start(
    net: Network, rank: int, body: Body, args: tuple[Any, ...], timeout_seconds: float, log: IO[bytes]
) -> "subprocess.Popen[bytes]":
    job = Job(NetRank(rank, net.ranks, net.rate_bits_per_second), net.addresses[0], body, args, timeout_seconds)
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = ["ip", "netns", "exec", net.namespaces[rank], sys.executable, "-m", "tightgrad_lab.network.rank_main"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(base64.b64encode(pickle.dumps(job)) + b"\n")
    process.stdin.flush()  # and stays open: a rank ends when it is closed
    return process


def _read(rank: int, process: "subprocess.Popen[bytes]", inbox: "queue.Queue[tuple[int, Any]]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        inbox.put((rank, json.loads(line)))
    inbox.put((rank, _ENDED))


def _collect(
    processes: "list[subprocess.Popen[bytes]]",
    inbox: "queue.Queue[tuple[int, Any]]",
    receive: Callable[[Any], None],
    logs: Sequence[IO[bytes]],
    timeout_seconds: float,
) -> None:
    deadline = time.monotonic() + timeout_seconds
    running = set(range(len(processes)))
    failed: list[int] = []
    while running:
        if time.monotonic() > deadline:
            if failed:
                break
            raise RunError(f"did not finish within {timeout_seconds:g} s: rank {_listed(running)} still ran")
        try:
            rank, message = inbox.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if message is not _ENDED:
            receive(message)
            continue
        running.discard(rank)
        if processes[rank].wait() != 0:
            failed.append(rank)
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if failed:
        # Who is seen first may only have lost its connection to the one that failed.
        raise RunError("; ".join(_reason(rank, processes[rank].returncode, logs[rank]) for rank in sorted(failed)))


def _reason(rank: int, code: int, log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"rank {rank} ended ({how}): {lines[-1].strip()[:300] if lines else 'it said nothing'}"


def _listed(ranks: set[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
