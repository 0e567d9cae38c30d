"""The audit starts scripts as `support.audit_ranks` does."""

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from support.audit_ranks import ForkedModule


@pytest.fixture(scope="session", autouse=True)
def _forked_scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            instead = SimpleNamespace(Popen=ForkedModule, STDOUT=subprocess.STDOUT)
            patch.setattr("tightgrad_lab.audit.script.launch.subprocess", instead)
        yield
