"""What tests of all folders use."""

import gc
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


# Nothing here imports torch before tests are collected: the process that only hands them to workers would take seconds
# for it, while these wait.
def pytest_collectstart() -> None:
    """Tests call `run_threaded` in many places; with its own time-out a busy machine looks like a deadlock."""
    from support.waiting import COLLECTIVE_SECONDS
    from tightgrad.collectives import run_threaded

    assert run_threaded.__kwdefaults__ is not None
    run_threaded.__kwdefaults__["timeout_seconds"] = COLLECTIVE_SECONDS


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """All that is collected stays to the end: no garbage collection looks through it, now or during a test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many threads of torch's during the test; `indirect` parametrization chooses others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
