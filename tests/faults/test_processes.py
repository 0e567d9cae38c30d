"""Real processes that something happens to: killed, or told to end. What comes after is bit-identical."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.waiting import patience

SCRIPT = Path(__file__).with_name("under_fire.py")
STEPS = 8
SECONDS = patience(100)
RANKS = 2
TIMEOUT = ("--timeout", str(patience(20)))  # of a collective; a rank that died is noticed without it


def start(folder, *options, restarts=0):
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={RANKS}",
        f"--max-restarts={restarts}",
    ]
    # On torch 2.13 the ranks of a second life may read the addresses of the first from a store that both share.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), str(STEPS), *options, *TIMEOUT]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@contextmanager
def started(*arguments, **settings):
    process = start(*arguments, **settings)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(patience(20))


def finish(process):
    output, _ = process.communicate(timeout=SECONDS)
    return output


def end_of(output):
    """The step that the run ended at, and the digest of its weights."""
    found = re.findall(r"\[step (\d+) digest (\w+)\]", output)
    assert found, output
    return int(found[-1][0]), found[-1][1]


def begins(output):
    return [int(step) for step in re.findall(r"\[begins at step (\d+)\]", output)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with started(tmp_path_factory.mktemp("undisturbed")) as process:
        step, digest = end_of(finish(process))
    assert step == STEPS
    return digest


@pytest.mark.slow  # distributed/test_killed.py kills and resumes without torchrun
def test_a_killed_rank_and_a_restart(tmp_path, undisturbed):
    """SIGKILL between the two micro-batches of step 5; torchrun starts all again, from the checkpoint of step 4."""
    with started(tmp_path, "--kill-in", "5", restarts=1) as process:
        output = finish(process)
    assert process.returncode == 0, output
    assert begins(output) == [0, 4]
    assert end_of(output) == (STEPS, undisturbed)
    assert "CommunicationError: all_reduce failed on rank 0 of 2" in output


@pytest.mark.slow
def test_told_to_end(tmp_path, undisturbed):
    """SIGTERM in the middle of step 3: all ranks finish it, save and end; a new job goes on from there."""
    with started(tmp_path, "--wait-in", "3") as process:
        deadline = time.monotonic() + SECONDS
        while len(list(tmp_path.glob("waits-*"))) < RANKS:
            assert time.monotonic() < deadline
            assert process.poll() is None, finish(process)
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert end_of(finish(process))[0] == 4
    with started(tmp_path) as process:
        output = finish(process)
    assert begins(output) == [4]
    assert end_of(output) == (STEPS, undisturbed)
