"""Ranks: those that torchrun started, or local ones over gloo started with torch's own process launcher.

Local ranks meet in a file, so no port is chosen and two labs never collide.
"""

import gc
import logging
import os
import queue
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from tightgrad_lab.environment import usable_cores
from tightgrad_lab.errors import RunError
from tightgrad_lab.forking import end_with_parent, process_context, start_method
from tightgrad_lab.signals import ended_by_signals, interrupts_deferred

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0
LOOPBACK_NAMES = ("lo", "lo0")


@dataclass(frozen=True)
class Rank:
    """One process of a data-parallel run."""

    rank: int
    ranks: int
    device: torch.device
    backend: str

    def device_name(self) -> str:
        """What computes, for the record: "cpu", or the GPU's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)


Send = Callable[[Any], None]
Body = Callable[..., None]


def under_torchrun() -> bool:
    """Whether a launcher has started this process as one of several ranks."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def run_ranks(
    ranks: int, body: Body, args: tuple[Any, ...], receive: Send, *, timeout_seconds: float | None = None
) -> None:
    """Run `body(rank, send, *args)` on every rank.

    Args:
        ranks: how many; under torchrun, its number.
        body: a module-level function; sends messages from rank 0.
        args: must be picklable.
        receive: called in this process with each message.
        timeout_seconds: how long a rank waits for the others in a collective; None takes torch's default.

    Raises:
        RunError: a rank failed; `__cause__` tells the rest.
    """
    if under_torchrun():
        with _process_group("env://", int(os.environ["RANK"]), ranks, timeout_seconds) as rank:
            try:
                body(rank, receive, *args)
            except Exception as error:
                raise RunError(f"{type(error).__name__}: {error}") from error
    else:
        _run_local(ranks, body, args, receive, timeout_seconds)


def _run_local(ranks: int, body: Body, args: tuple[Any, ...], receive: Send, timeout_seconds: float | None) -> None:
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.CRITICAL)
    messages: Queue[Any] = process_context().Queue()
    context = None
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="tightgrad-") as folder:
        store = (Path(folder) / "store").as_uri()
        try:
            with interrupts_deferred():
                context = start_processes(
                    _local_main,
                    (ranks, dict(os.environ), store, timeout_seconds, messages, body, args),
                    nprocs=ranks,
                    join=False,
                    daemon=True,
                    start_method=start_method(),
                )
            assert context is not None
            while not context.join(POLL_SECONDS, GRACE_SECONDS):
                _drain(messages, receive)
            _drain(messages, receive)
        except (ProcessRaisedException, ProcessExitedException) as error:
            _drain(messages, receive)
            raise RunError(_reason(error)) from error
        finally:
            processes = context.processes if context else []
            for process in processes:  # all at once: the kernel takes its time to end each
                process.kill()
            for process in processes:
                process.join()
            messages.close()


def _local_main(
    index: int,
    ranks: int,
    environment: dict[str, str],
    store: str,
    timeout_seconds: float | None,
    messages: "Queue[Any]",
    body: Body,
    args: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports; a killed parent takes its ranks along
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # and a Ctrl-C since then ends this rank now
    end_with_parent()
    gc.freeze()  # what the server has imported stays: garbage collection, also before memory is measured, leaves it out
    os.environ.clear()  # that of the server, which is older
    os.environ.update(environment)
    torch.set_num_threads(max(1, usable_cores() // ranks))
    loopback = [name for _, name in socket.if_nameindex() if name in LOOPBACK_NAMES]
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    with _process_group(store, index, ranks, timeout_seconds) as rank:
        body(rank, messages.put, *args)


@contextmanager
def _process_group(store: str, rank: int, ranks: int, timeout_seconds: float | None) -> Iterator[Rank]:
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    on_gpu = torch.cuda.device_count() >= local_ranks
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    backend = "nccl" if on_gpu else "gloo"
    if on_gpu:
        torch.cuda.set_device(device)
    timeout = None if timeout_seconds is None else timedelta(seconds=timeout_seconds)
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=ranks, timeout=timeout)
    try:
        yield Rank(rank, ranks, device, backend)
    finally:
        dist.destroy_process_group()


def _drain(messages: "Queue[Any]", receive: Send) -> None:
    while True:
        try:
            receive(messages.get_nowait())
        except queue.Empty:
            return


def _reason(error: ProcessRaisedException | ProcessExitedException) -> str:
    if isinstance(error, ProcessExitedException):
        return f"rank {error.error_index} ended ({error.signal_name or f'exit code {error.exit_code}'})"
    return str(error).strip().splitlines()[-1]
