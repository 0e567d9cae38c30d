"""Where tests/gpu runs: on CUDA, or on the device that TIGHTGRAD_TEST_DEVICE names, to try the tests themselves out."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

DEVICE = torch.device(os.environ.get("TIGHTGRAD_TEST_DEVICE", "cuda"))
if DEVICE.type == "cuda":
    DEVICE = torch.device("cuda", 0)
ON_CUDA = DEVICE.type == "cuda"
BACKENDS = ("nccl", "cpu:gloo,cuda:nccl") if ON_CUDA else ("gloo", "cpu:gloo")


def skip_without_device() -> None:
    """Leave a whole file out, without collecting its hundreds of tests."""
    if ON_CUDA and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device", allow_module_level=True)


@contextmanager
def without_waiting() -> Iterator[None]:
    """On CUDA, what makes the host wait for the device is an error within."""
    if not ON_CUDA:
        yield
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not see everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def synchronize() -> None:
    """Wait for what was submitted: errors of kernels come out here."""
    if ON_CUDA:
        torch.cuda.synchronize()


def generator(seed: int = 0) -> torch.Generator:
    """On the device."""
    return torch.Generator(DEVICE).manual_seed(seed)
