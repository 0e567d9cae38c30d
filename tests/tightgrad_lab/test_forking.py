"""Processes that are forked from a server end with the process that asked for them, though the server may live on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from support.waiting import patience
from tightgrad_lab.forking import process_context

PROGRAM = """
import os, threading, time
from functools import partial
from pathlib import Path
from tightgrad_lab.experiments.fragile import outcomes
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.training.ranks import run_ranks

def rank(index, send, folder):
    leave_number(f"{folder}/ranks")

def leave_number(place):
    Path(f"{place}.{os.getpid()}").touch()
    time.sleep(3600)

if __name__ == "__main__":
    folder = os.getcwd()
    for start in (
        partial(run_all, leave_number, [f"{folder}/workers"] * 2, print),
        partial(outcomes, 2, leave_number, f"{folder}/fragile", seconds=3600),
    ):
        threading.Thread(target=start, daemon=True).start()
    run_ranks(2, rank, (folder,), print)
"""
STARTS = ("ranks", "workers", "fragile")


def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment) as process:
        try:
            _wait(lambda: all(len(_started(tmp_path, kind)) == 2 for kind in STARTS) or process.poll() is not None)
            numbers = {kind: _started(tmp_path, kind) for kind in STARTS}
            assert all(len(own) == 2 and all(map(_runs, own)) for own in numbers.values()), numbers
        finally:
            process.send_signal(signal.SIGKILL)
    for kind, own in numbers.items():
        _wait(lambda own=own: not any(map(_runs, own)), f"the {kind} have not ended")


def _started(folder, kind):
    return [int(path.suffix[1:]) for path in folder.glob(f"{kind}.*")]


def _wait(done, otherwise="not all have started"):
    end = time.monotonic() + patience(30)
    while not done():
        assert time.monotonic() < end, otherwise
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
