"""Runs a student's function on two gloo processes that share this one's memory so far."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch._dynamo  # DDP imports it when it is built: once here, and not in each process
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad_lab.exercises import words
from tightgrad_lab.exercises.load import StudentError
from tightgrad_lab.exercises.words import Words

WORLD = 2
SECONDS = 25.0
HUNG = words.WAITING


def on_two_processes(
    function: Callable[..., Any], runs: list[tuple[nn.Module, list[Any]]]
) -> list[list[dict[str, Any]]]:
    """Return, for each rank and run, its gradients and how often gradients were exchanged.

    Args:
        function: the student's; is given the wrapped model and the window of its rank.
        runs: models with the windows of both ranks.

    Raises:
        StudentError: a rank raised, or the ranks wait for each other.
    """
    context = multiprocessing.get_context("fork")
    ranks, readers = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(WORLD):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, f"{folder}/store", function, runs, writer), daemon=True)
            process.start()
            writer.close()  # the rank's is the only one left: its death ends the pipe
            ranks.append(process)
            readers.append(reader)
        found = [_answer(reader) for reader in readers]
        for process in ranks:
            process.kill()
            process.join()
    errors = [answer for answer in found if isinstance(answer, Words)]
    if errors:
        raise StudentError(
            min(errors, key=lambda one: one == HUNG)
        )  # one rank's own error explains why the other waits
    return found


def _answer(reader: Any) -> Any:
    """Return what a rank sends; a rank that dies or waits was left alone in a collective."""
    try:
        return reader.recv() if reader.poll(SECONDS + 5) else HUNG
    except EOFError:
        return HUNG


def _rank(
    rank: int, store: str, function: Callable[..., Any], runs: list[tuple[nn.Module, list[Any]]], writer: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=SECONDS)
        )
        writer.send([_window(function, model, windows[rank]) for model, windows in runs])
    except Exception as error:
        writer.send(_said(error, function))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _window(function: Callable[..., Any], model: nn.Module, window: Any) -> dict[str, Any]:
    exchanges = 0
    wrapped = DistributedDataParallel(model)
    for parameter in wrapped.parameters():
        parameter.grad = torch.ones_like(parameter)

    def count(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
        nonlocal exchanges
        exchanges += 1
        if exchanges > 1:  # counted only: the other process may have fewer micro-batches, and would not answer
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done
        work = dist.all_reduce(bucket.buffer().div_(WORLD), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])  # type: ignore[no-any-return]

    wrapped.register_comm_hook(None, count)
    function(wrapped, window)
    gradients = [None if one.grad is None else one.grad.tolist() for one in model.parameters()]
    return {"gradients": gradients, "exchanges": exchanges}


def _said(error: Exception, function: Callable[..., Any]) -> Words:
    reason = " ".join(str(error).split())[:300] or "-"
    if any(one in reason for one in ("imed out", " by peer", "gloo")):
        return HUNG
    path = function.__code__.co_filename
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == path]
    if not frames:
        return words.RAISED_OUTSIDE.of(kind=type(error).__name__, reason=reason)
    return words.RAISED.of(line=frames[-1].lineno, kind=type(error).__name__, reason=reason, text=frames[-1].line)
