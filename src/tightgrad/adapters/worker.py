"""A thread that runs tasks one after the other, in the order they were given, while backward goes on.

Collectives have to be called in the same order on every rank. Callbacks of futures have no order over ranks; a single
queue, filled in the order of backward and emptied by one thread with a process group of its own, has.
"""

import queue
import threading
import weakref
from collections.abc import Callable
from functools import partial

import torch

Task = Callable[[], object]


class FifoWorker:
    """Runs tasks in one thread, which starts at once and ends with this object, and has as many threads as its maker.

    On a CUDA device tasks run on a stream of their own: each starts after what its giver's stream had under way, and
    `join` makes the caller's stream wait for all of them.

    Args:
        device: of the tensors that tasks work on.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._errors: list[BaseException] = []
        arguments = (self._tasks, self._errors, torch.get_num_threads())
        threading.Thread(target=_serve, args=arguments, name="tightgrad", daemon=True).start()
        weakref.finalize(self, self._tasks.put, None)

    def submit(self, task: Task, then: Task | None = None) -> None:
        """Run `task` after those given before, unless one of them has raised since the last `join`: other ranks stop as
        well. Run `then` after it in any case.
        """
        run: Task = partial(_run, task, then, self._errors)
        if self._stream is not None:
            run = _on_stream(run, self._stream, torch.cuda.current_stream(self._stream.device).record_event())
        self._tasks.put(run)

    def join(self) -> BaseException | None:
        """Wait until all tasks are done; return what one of them has raised since the last call."""
        done = threading.Event()
        self._tasks.put(done.set)
        done.wait()
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        error = next(iter(self._errors), None)
        self._errors.clear()
        return error


def _serve(tasks: "queue.SimpleQueue[Task | None]", errors: list[BaseException], num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    while (task := tasks.get()) is not None:
        try:
            with torch.no_grad():
                task()
        except BaseException as error:
            errors.append(error)
        del task  # it holds gradients


def _run(task: Task, then: Task | None, errors: list[BaseException]) -> None:
    try:
        if not errors:
            task()
    finally:
        if then is not None:
            then()


def _on_stream(task: Task, stream: torch.cuda.Stream, ready: torch.cuda.Event) -> Task:
    def run() -> None:
        with torch.cuda.device(stream.device), torch.cuda.stream(stream):
            stream.wait_event(ready)
            task()

    return run
