"""How much memory is free and how much is used, and whether an error says that none is left."""

import os
from mmap import PAGESIZE
from pathlib import Path

import torch

_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the device or the host had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in _MESSAGES)


def free_nbytes(device: torch.device) -> int:
    """Return the bytes that could still be allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * PAGESIZE


def used_nbytes(device: torch.device) -> int | None:
    """Return the bytes of the tensors on a GPU, or the resident bytes of this process on the CPU; None where neither is
    known.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _resident_nbytes(os.getpid())


def _resident_nbytes(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGESIZE
    except OSError:
        return None
