import pytest

from tightgrad_lab.exercises import comm


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Ranks that wait for each other give up sooner."""
    monkeypatch.setattr(comm, "SECONDS", 2.0)
