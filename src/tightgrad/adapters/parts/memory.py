"""How much memory is free, and how much is used."""

import os
from functools import cache
from mmap import PAGESIZE

import torch


def free_nbytes(device: torch.device) -> int:
    """Bytes that could still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * PAGESIZE


def used_nbytes(device: torch.device) -> int | None:
    """Bytes of the tensors on a GPU, or the resident bytes of this process on the CPU; None where neither is known."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    file = _statm(os.getpid())
    return None if file is None else int(os.pread(file, 256, 0).split()[1]) * PAGESIZE


@cache
def _statm(pid: int) -> int | None:
    """The process's own file, kept open since it is read at every step; a forked process has another."""
    try:
        return os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    except OSError:
        return None
