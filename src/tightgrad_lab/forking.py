"""Start processes that need not import torch first: they are forked from a server that has imported it and run nothing.

Importing torch and the library takes a process two to three seconds of CPU, a fork a few hundredths.
"""

import multiprocessing
import os
import threading
from typing import Any

import torch

PRELOADED = [
    "torch",
    "torch._dynamo",  # DistributedDataParallel and the optimizers import it when they are made
    "torch.profiler._cupti_monitor",  # and the first backward of a wrapped model this
    "torch.distributed.fsdp",
    "tightgrad",
    "tightgrad_lab.training",
    "tightgrad_lab.experiments.fragile",
]


def start_method() -> str:
    """Return "forkserver", or "spawn" where there is a GPU, since a fork would lose CUDA."""
    return "spawn" if torch.cuda.is_available() else "forkserver"


def process_context() -> Any:
    """Return what starts processes, with torch imported already where that can be.

    Such processes have the environment variables of the first that was started, not today's.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    return multiprocessing.get_context(start_method())


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, also where that was killed.

    The kernel could only tell it of the end of the server, which lives as long as one of its processes.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a process that multiprocessing has not started"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
