"""The audit starts scripts as `support.audit_ranks` does, and pictures that no test reads are not drawn."""

import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from support.audit_ranks import ForkedModule
from support.drawing import without_png

WITH_PNG = "report/test_build.py"  # which compares every file of a report


@pytest.fixture(scope="session", autouse=True)
def _forked_scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            instead = SimpleNamespace(Popen=ForkedModule, STDOUT=subprocess.STDOUT)
            patch.setattr("tightgrad_lab.audit.script.launch.subprocess", instead)
        yield


@pytest.fixture(scope="module", autouse=True)
def _without_png(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if request.path.as_posix().endswith(WITH_PNG) else without_png():
        yield
