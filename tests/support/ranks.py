"""Real ranks: processes over gloo, started from a test and kept for the next one.

They are forked from a server that has imported torch and has run nothing: to import takes each some seconds.
"""

import faulthandler
import gc
import os
import pickle
import queue
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from support.waiting import COLLECTIVE_SECONDS, GRACE_SECONDS
from tightgrad_lab.forking import PRELOADED, end_with_parent, process_context

PRELOADED.append("pytest")  # which the files import that bodies stand in


class RankError(Exception):
    """A rank raised, died or did not come to an end; carries every rank's traceback that there is."""


class _HungError(RankError):
    """A rank was through with a body, and has not come to the end of the garbage collection after it."""


@dataclass(frozen=True)
class _Task:
    folder: str
    world_size: int
    timeout_seconds: float
    body: Callable[..., Any]
    args: tuple[Any, ...]


def run_ranks(
    world_size: int, body: Callable[..., Any], *args: Any, timeout_seconds: float = COLLECTIVE_SECONDS
) -> list[Any]:
    """Run `body(*args)` in `world_size` gloo processes; return what each returned, by rank.

    `body` must be a module-level function, and its result must survive torch.save. Processes are reused, since
    importing torch costs seconds; what a new process has of its own is restored for each body: random numbers, default
    dtype and device, and environment. After an error all are replaced.

    Args:
        world_size: number of processes.
        body: what each runs, inside a process group.
        args: of body; must survive pickling.
        timeout_seconds: how long one collective may wait.

    Raises:
        RankError: a rank failed.
    """
    try:
        return _run_once(world_size, body, args, timeout_seconds)
    except _HungError:  # torch's own hang is rare; a finalizer of ours that hangs does so again
        return _run_once(world_size, body, args, timeout_seconds)


def _run_once(world_size: int, body: Callable[..., Any], args: tuple[Any, ...], timeout_seconds: float) -> list[Any]:
    if any(worker.more_threads() > MORE_THREADS for worker in _workers):
        _stop_all()
    while len(_workers) < world_size:
        _workers.append(_Worker(len(_workers)))
    with tempfile.TemporaryDirectory() as folder:
        task = _Task(folder, world_size, timeout_seconds, body, args)
        try:
            errors = _run(_workers[:world_size], task)
            if not errors:
                errors = _collected(_workers[:world_size], task)
        except BaseException:  # a test that ran out of time must not leave its task to the next one
            _stop_all()
            raise
        if errors:
            _stop_all()
            raise RankError("\n".join(f"-- rank {rank}:\n{text}" for rank, text in sorted(errors.items())))
        return [torch.load(_result_path(folder, rank), weights_only=False) for rank in range(world_size)]


MORE_THREADS = 24
"""How many threads more than after its first body a rank may have that is kept for the next one.

Bodies with FSDP2 leave process groups in cycles and in torch's caches. Each has threads, one of which wakes a hundred
times a second, and at the end of all tests a rank had a hundred groups.
"""


class _Worker:
    def __init__(self, rank: int) -> None:
        context = process_context()
        self.tasks = context.Queue()
        self.answers = context.Queue()
        self.process = context.Process(target=_serve, args=(rank, self.tasks, self.answers), daemon=True)
        self.process.start()
        self.own_threads = 0

    def more_threads(self) -> int:
        """How many threads it has more than after its first body."""
        if not self.own_threads:
            self.own_threads = self._threads()
        return self._threads() - self.own_threads

    def _threads(self) -> int:
        """How many threads it has; 0 where /proc does not say."""
        try:
            return len(os.listdir(f"/proc/{self.process.pid}/task"))
        except OSError:  # it has just ended, or this system has no /proc
            return 0

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        for channel in (self.tasks, self.answers):
            channel.cancel_join_thread()
            channel.close()


_workers: list[_Worker] = []


def _run(workers: list[_Worker], task: _Task) -> dict[int, str]:
    """Give the task to all; return the tracebacks of those that failed."""
    packed = pickle.dumps(task)  # by value: a queue would send a file descriptor for each tensor
    for worker in workers:
        worker.tasks.put(packed)
    waiting = dict(enumerate(workers))
    errors: dict[int, str] = {}
    deadline = float("inf")
    while waiting and time.monotonic() < deadline:
        for rank, worker in list(waiting.items()):
            answer = _answer(worker, _trace_path(task.folder, rank))
            if answer is None:
                continue
            del waiting[rank]
            if answer:
                errors[rank] = answer
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    return errors


def _collected(workers: list[_Worker], task: _Task) -> dict[int, str]:
    """Wait until all have collected their garbage; return the tracebacks of those that died of it.

    Deleting a process group can hang in torch: it waits for a thread of its own and holds the interpreter, for which
    that thread waits to delete a work.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    answers: dict[int, str | None] = {}
    for rank, worker in enumerate(workers):
        answers[rank] = _answer(worker, _trace_path(task.folder, rank))
        while answers[rank] is None and time.monotonic() < deadline:
            answers[rank] = _answer(worker, _trace_path(task.folder, rank))
    errors = {rank: answer for rank, answer in answers.items() if answer}
    hung = [rank for rank, answer in answers.items() if answer is None]
    if hung and not errors:
        raise _HungError(f"garbage collection after the body hung on rank {hung}, in two runs of it")
    return errors


def _answer(worker: _Worker, trace: Path) -> str | None:
    """A traceback, "" if all went well, None if there is no answer yet."""
    try:
        return worker.answers.get(timeout=0.01)
    except queue.Empty:
        pass
    if worker.process.is_alive():
        return None
    stack = trace.read_text(encoding="utf-8") if trace.exists() else ""
    return f"the process died with exit code {worker.process.exitcode}\n{stack}"


def _stop_all() -> None:
    while _workers:
        _workers.pop().stop()


def _serve(rank: int, tasks: "mp.Queue[bytes]", answers: "mp.Queue[str]") -> None:
    end_with_parent()
    gc.freeze()  # what the server has imported stays: garbage collection leaves it out
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    make_new = as_new()
    while True:
        task = pickle.loads(tasks.get())
        gc.freeze()  # also what the task's file has imported, and what is still alive of the task before
        make_new()
        try:
            with _stack_kept(_trace_path(task.folder, rank)):
                _run_body(rank, task)
        except BaseException:
            answer = traceback.format_exc()
        else:
            answer = ""
        answers.put(answer)
        # Process groups that are left in cycles look for a file of this folder, which goes after the second answer.
        # Their threads may be about to delete a work, for which they need the interpreter that a deletion holds.
        time.sleep(0.005)
        with _stack_kept(_trace_path(task.folder, rank)):
            gc.collect()
        answers.put("")


@contextmanager
def _stack_kept(path: Path) -> Iterator[None]:
    """Have what a process does written to a file if it dies of a signal such as SIGSEGV."""
    with path.open("w", encoding="utf-8") as trace:
        faulthandler.enable(trace)
        try:
            yield
        finally:
            faulthandler.disable()


def as_new() -> Callable[[], None]:
    """Return what brings the process back to the state that it has now, where bodies are likely to change it."""
    environment = dict(os.environ)
    drawn = random.getstate(), np.random.get_state(), torch.get_rng_state()
    dtype, is_deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()

    def restore() -> None:
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        torch.set_rng_state(drawn[2])
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
        torch.set_num_threads(1)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(is_deterministic)

    return restore


def _run_body(rank: int, task: _Task) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{task.folder}/store",
        rank=rank,
        world_size=task.world_size,
        timeout=timedelta(seconds=task.timeout_seconds),
    )
    dist.barrier()  # a body that is through at once closes its connections, to the surprise of one still connecting
    try:
        torch.save(task.body(*task.args), _result_path(task.folder, rank))
    finally:
        dist.destroy_process_group()


def _trace_path(folder: str, rank: int) -> Path:
    return Path(folder) / f"{rank}.trace"


def _result_path(folder: str, rank: int) -> Path:
    return Path(folder) / f"result{rank}.pt"
