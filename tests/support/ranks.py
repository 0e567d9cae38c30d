"""Real ranks: processes over gloo, started from a test."""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_SECONDS = 60


def run_ranks(world_size: int, body: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `body(*args)` in `world_size` gloo processes; return what each returned, by rank.

    `body` must be a module-level function, and its result must survive torch.save.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank_main, (world_size, folder, body, args), nprocs=world_size, start_method="spawn")
        return [torch.load(Path(folder) / f"result{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank_main(rank: int, world_size: int, folder: str, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    try:
        torch.save(body(*args), Path(folder) / f"result{rank}.pt")
    finally:
        dist.destroy_process_group()
