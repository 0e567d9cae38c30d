"""Rank processes are kept for the next test, and are as new for it."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from support import ranks
from support.ranks import MORE_THREADS, RankError, run_ranks


def seen() -> tuple[object, ...]:
    """What a body finds: another one that ran before it must not show."""
    drawn = torch.rand(3).tolist(), np.random.random(3).tolist(), random.random()
    modes = torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    return os.getpid(), dict(os.environ), drawn, torch.tensor(0.5).dtype, torch.zeros(()).device, modes


def leaves_much() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    os.environ["TIGHTGRAD_LEFT_OVER"] = "1"
    os.environ.pop("GLOO_SOCKET_IFNAME")


def test_nothing_that_a_body_leaves_reaches_the_next_one() -> None:
    before = run_ranks(2, seen)
    assert [found[1]["GLOO_SOCKET_IFNAME"] for found in before] == ["lo", "lo"]
    run_ranks(2, leaves_much)
    after = run_ranks(2, seen)
    assert [found[0] for found in after] == [found[0] for found in before], "the processes are other ones"
    assert after == before


def dies_of_a_signal() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_rank_that_dies_of_a_signal_says_where() -> None:
    with pytest.raises(RankError, match=r"(?s)exit code -11.*Segmentation fault.*in dies_of_a_signal"):
        run_ranks(1, dies_of_a_signal)


class Garbage:
    """In a cycle with itself, so that only garbage collection deletes it."""

    def __init__(self, at_the_end: Callable[[], object]) -> None:
        self.me = self
        self.at_the_end = at_the_end

    def __del__(self) -> None:
        self.at_the_end()


def leaves_what_hangs(once: Path | None) -> int:
    if once is None or not once.exists():
        Garbage(lambda: time.sleep(1000))
    if once is not None:
        once.touch()
    return os.getpid()


def leaves_what_dies() -> None:
    Garbage(dies_of_a_signal)


def test_a_body_after_which_garbage_collection_hangs_is_run_once_more(tmp_path, monkeypatch) -> None:
    (before,) = run_ranks(1, os.getpid)
    with monkeypatch.context() as impatient:
        impatient.setattr(ranks, "GRACE_SECONDS", 0.5)
        with pytest.raises(RankError, match=r"garbage collection after the body hung on rank \[0\], in two runs"):
            run_ranks(1, leaves_what_hangs, None)
    (after,) = run_ranks(1, leaves_what_hangs, tmp_path / "once")
    assert before != after == run_ranks(1, os.getpid)[0]


def test_a_rank_that_dies_of_its_garbage_says_where() -> None:
    with pytest.raises(RankError, match=r"(?s)exit code -11.*Segmentation fault.*in dies_of_a_signal"):
        run_ranks(1, leaves_what_dies)


def shards_a_model() -> int:
    model = nn.Linear(4, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("between", "within")))
    model(torch.ones(2, 4)).sum().backward()
    return len(os.listdir("/proc/self/task"))


def test_process_groups_that_bodies_leave_do_not_pile_up() -> None:
    counts = [run_ranks(2, shards_a_model)[0] for _ in range(20)]
    own = counts[0]
    assert max(counts) <= MORE_THREADS + 2 * own, counts
