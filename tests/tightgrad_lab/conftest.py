"""The lab starts its ranks as `support.lab_ranks` does."""

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from support.lab_ranks import ForkedModule, start_lab_ranks
from support.ranks import process_context


@pytest.fixture(scope="session", autouse=True)
def _forked_ranks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr("tightgrad_lab.training.ranks.start_processes", start_lab_ranks)
            patch.setattr("tightgrad_lab.experiments.workers.get_context", lambda method: process_context())
            instead = SimpleNamespace(Popen=ForkedModule, STDOUT=subprocess.STDOUT)
            patch.setattr("tightgrad_lab.audit.script.launch.subprocess", instead)
        yield
