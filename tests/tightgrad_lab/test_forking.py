"""Processes that are forked from a server end with the process that asked for them, though the server may live on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from support.waiting import patience
from tightgrad_lab.forking import process_context

PROGRAM = """
import os, time
from pathlib import Path
from tightgrad_lab.experiments.fragile import outcomes
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.training.ranks import run_ranks

def rank(index, send, folder):
    leave_number(folder)

def leave_number(folder):
    Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(3600)

if __name__ == "__main__":
    folder = os.getcwd()
    START
"""
STARTS = {
    "ranks": "run_ranks(2, rank, (folder,), print)",
    "workers": "run_all(leave_number, [folder, folder], print)",
    "fragile": "outcomes(2, leave_number, folder, seconds=3600)",
}


@pytest.mark.parametrize("kind", STARTS)
def test_processes_end_when_the_one_that_started_them_is_killed(kind, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.replace("START", STARTS[kind]), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment) as process:
        try:
            _wait(lambda: len(list(tmp_path.glob("*.pid"))) == 2 or process.poll() is not None)
            numbers = [int(path.stem) for path in tmp_path.glob("*.pid")]
            assert len(numbers) == 2
            assert all(map(_runs, numbers))
        finally:
            process.send_signal(signal.SIGKILL)
    _wait(lambda: not any(map(_runs, numbers)))


def _wait(done):
    end = time.monotonic() + patience(30)
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _runs(number):
    """Whether a process of this number is more than an exit code that nobody has asked for."""
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_gpu_gets_processes_that_were_not_forked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert process_context().get_start_method() == "spawn"
