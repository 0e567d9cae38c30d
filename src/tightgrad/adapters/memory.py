"""How much memory is free, and how much is used."""

import os

import torch

_STATM = "/proc/self/statm"


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
        file = os.open(_STATM, os.O_RDONLY)  # a tenth of the time of open(), at every step
    except OSError:
        return None
    try:
        pages = os.read(file, 256).split()[1]
    finally:
        os.close(file)
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
