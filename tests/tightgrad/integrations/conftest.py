"""What the tests of all frameworks share."""

import pytest

from support.accelerate_state import reset


@pytest.fixture(autouse=True)
def _fresh():
    """No test leaves Accelerate's state to the next one."""
    yield
    reset()
