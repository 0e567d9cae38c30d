"""Memory that this process uses."""

import mmap
import os
import subprocess
import sys

import pytest
import torch

from tightgrad.core import memory

CPU = torch.device("cpu")


@pytest.mark.skipif(memory.used_nbytes(CPU) is None, reason="the system does not say")
def test_grows_by_what_is_allocated():
    """The pages come straight from the system: a tensor may lie in resident ones that others left to the allocator."""
    before = memory.used_nbytes(CPU)
    with mmap.mmap(-1, 64 * 2**20) as pages:
        held = torch.frombuffer(pages, dtype=torch.float32).fill_(1)
        grown = memory.used_nbytes(CPU) - before
        del held  # or the pages could not be given back
    assert grown > 0.9 * 64 * 2**20


@pytest.mark.skipif(memory.used_nbytes(CPU) is None, reason="the system does not say")
def test_another_process_has_a_file_of_its_own():
    """A forked process would otherwise report its parent's memory."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        own, other = memory._resident_nbytes(os.getpid()), memory._resident_nbytes(child.pid)
        child.communicate(b"\n")
    assert own > 3 * other, "this process has torch loaded, the other one nothing"


def test_unknown_where_there_is_no_such_file():
    assert memory._resident_nbytes(2**31 - 2) is None
