"""How much memory is free, and how much is used."""

import os
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")


def free_nbytes(device: torch.device) -> int:
    """Bytes that could still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def used_nbytes(device: torch.device) -> int | None:
    """Bytes of the tensors on a GPU, or the resident bytes of this process on the CPU; None where neither is known."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        pages = _STATM.read_bytes().split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
