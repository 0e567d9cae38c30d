"""Ranks are killed while they save: what is loaded afterwards is one save, and none that had ended is lost."""

import json
import os

import pytest

from faults import kill_saves
from support.programs import run_program
from support.waiting import patience

FEW, MANY = 12, 200


def survive(folder, count, seed, sent):
    done = run_program(
        "from faults.kill_saves import main\nmain()",
        folder,
        {**os.environ, "OMP_NUM_THREADS": "1"},
        str(folder / "run"),
        str(count),
        str(seed),
        sent,
        seconds=60 + 3 * count,
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
