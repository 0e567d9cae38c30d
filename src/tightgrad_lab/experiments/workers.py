"""Jobs that do not need each other, one process a core, each with one thread: results do not depend on cores."""

import logging
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import active_children
from typing import TypeVar

import torch

from tightgrad_lab.environment import usable_cores
from tightgrad_lab.experiments.experiment import Report
from tightgrad_lab.forking import end_with_parent, process_context

Job = TypeVar("Job")
Found = TypeVar("Found")


def _start() -> None:
    """One thread; and no warnings of the library, since experiments provoke on purpose what it warns of."""
    end_with_parent()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.getLogger("tightgrad").setLevel(logging.ERROR)


def run_all(
    body: Callable[[Job], Found], jobs: Sequence[Job], report: Report, *, share: tuple[float, float] = (0.0, 1.0)
) -> list[Found]:
    """Call `body` on every job.

    Args:
        body: a module-level function; its jobs and results are pickled.
        jobs: begun in this order: the longest first.
        report: told after each job.
        share: of the experiment, that this is; where it begins and ends in [0, 1].

    Returns:
        What `body` returned, in the order of the jobs.
    """
    begin, end = share
    workers = max(1, min(usable_cores(), len(jobs)))
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, process_context(), initializer=_start)
    with pool:
        futures: list[Future[Found]] = [pool.submit(body, job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(begin + (end - begin) * done / len(jobs), f"{done} of {len(jobs)} runs")
        except (KeyboardInterrupt, SystemExit):
            for worker in set(active_children()) - others:  # a job may take minutes
                worker.kill()
            raise
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]
