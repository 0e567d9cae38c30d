"""Ranks are killed while they save: what is loaded afterwards is one save, and none that had ended is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults import kill_saves
from support.waiting import patience

FEW, MANY = 12, 200


def survive(folder, count, seed, sent):
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), *sys.path])  # the code that this process tests
    done = subprocess.run(
        [sys.executable, "-m", "faults.kill_saves", str(folder / "run"), str(count), str(seed), sent],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=patience(60 + 3 * count),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert not report["failures"], report["failures"][0] + done.stderr[-4000:]
    counts = report["counts"]
    assert sum(counts[kind] for kind in set(kill_saves.KINDS)) == count
    assert counts["in a window"] == count // 2
    return counts


@pytest.mark.timeout(patience(180))
@pytest.mark.parametrize(("sent", "seed"), [("SIGKILL", 0), ("SIGTERM", 1)])
def test_a_few_kills(tmp_path, sent, seed):
    assert survive(tmp_path, FEW, seed, sent)["while the victim saved"] > 0


@pytest.mark.slow
@pytest.mark.timeout(patience(720))
def test_many_kills(tmp_path):
    """At least a quarter of them strike between the beginning and the end of a save: more are aimed there."""
    assert survive(tmp_path, MANY, 2, "SIGKILL")["while the victim saved"] > MANY / 4
