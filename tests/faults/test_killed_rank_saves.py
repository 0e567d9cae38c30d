"""One of two ranks is killed inside `tg.save`: both take up the newest whole save, and go on bit by bit as if nothing
had happened.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import tightgrad as tg
from support.ranks import RankError, run_ranks
from support.waiting import patience
from support.wrapping import full, small_model, wrap

STEPS, SAVED, KILLED = 6, 2, 4
OPERATIONS = {"os.mkdir", "os.rename", "open"}


def kill_at(operation):
    """Before this rank's write of this number."""
    left = [operation]

    def heard(event, arguments):
        if event in OPERATIONS and (event != "open" or "w" in str(arguments[1])):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(heard)


def made(kind):
    model = wrap(small_model(), kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    compress = tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback())
    return model, optimizer, tg.attach(model, optimizer, tg.Plan(tg.Accumulate(2), compress=compress))


def batches():
    generator = torch.Generator().manual_seed(dist.get_rank())
    return list(torch.randn(2 * STEPS, 3, 20, generator=generator))


def train(model, optimizer, pipe, folder, begin=0, killed=None):
    """From a batch on, with a save after two of the steps; a rank may die in the second one."""
    for window in pipe.windows(batches()[begin:]):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        pipe.step()
        if folder is not None and pipe.state.step in (SAVED, KILLED):
            if killed is not None and pipe.state.step == KILLED and dist.get_rank() == killed[0]:
                kill_at(killed[1])
            tg.save(folder, model, optimizer, pipe, keep=2)
    return [full(parameter) for parameter in model.parameters()]


def uninterrupted(kind):
    return train(*made(kind), None)


def dying(kind, folder, killed):
    train(*made(kind), Path(folder), killed=killed)


def resumed(kind, folders):
    found = []
    for folder in folders:
        parts = made(kind)
        begin = tg.load(folder, *parts)
        found.append((parts[2].state.step, train(*parts, None, begin)))
    return found


@pytest.mark.timeout(patience(240))
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_rank_that_is_killed_in_a_save(kind, tmp_path):
    folders = []
    for killed in ((0, 1), (1, 0), (0, 5)):  # rank, and how many of its writes are done
        folders.append(str(tmp_path / "-".join(map(str, killed))))
        with pytest.raises(RankError, match=r"died with exit code -9"):
            run_ranks(2, dying, kind, folders[-1], killed, timeout_seconds=patience(20))
    want = run_ranks(2, uninterrupted, kind)
    for rank, runs in enumerate(run_ranks(2, resumed, kind, folders)):
        assert {step for step, _ in runs} <= {SAVED, KILLED}
        assert SAVED in {step for step, _ in runs}
        for _, weights in runs:
            assert all(map(torch.equal, weights, want[rank]))
