"""The process of one rank: reads its job from stdin, writes messages to stdout, one JSON value a line."""

import base64
import json
import os
import pickle
import sys
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tightgrad_lab.network.ranks import STORE_PORT, Job

MEETING_SECONDS = 600.0


def main() -> None:
    """Run the job in a gloo process group."""
    # What libraries print to stdout goes to stderr: stdout is for messages.
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job: Job = pickle.loads(base64.b64decode(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)

    def send(message: Any) -> None:
        messages.write(json.dumps(message, allow_nan=False) + "\n")
        messages.flush()

    meeting = timedelta(seconds=MEETING_SECONDS)
    is_master = job.rank.rank == 0
    store = TCPStore(job.address, STORE_PORT, job.rank.ranks, is_master, meeting, wait_for_workers=False)
    timeout = timedelta(seconds=job.timeout_seconds)
    dist.init_process_group("gloo", store=store, rank=job.rank.rank, world_size=job.rank.ranks, timeout=timeout)
    job.body(job.rank, send, *job.args)
    dist.barrier()  # rank 0 has the store, and leaves last
    dist.destroy_process_group()
    messages.close()
    sys.stderr.flush()
    os._exit(0)  # torn down by the interpreter, threads of torch now and then abort a rank that has done its work


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock a daemon thread would hold while the interpreter shuts down.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
