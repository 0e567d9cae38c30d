"""A disk that fills up while a checkpoint is written: an error on every rank; the previous checkpoint stays valid."""

import os
import subprocess

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks

PLAN = tg.Plan(compress=tg.Compress(tg.codecs.TopK(density=0.01), feedback=tg.ErrorFeedback()))
FEATURES = 100  # a residual of 40 kB on each rank


@pytest.fixture
def small_disk(tmp_path):
    """Room for one checkpoint of two ranks, and half of another."""
    assert os.geteuid() == 0, "this test mounts a file system of its own, which takes root"
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def train(pipe, model, steps):
    generator = torch.Generator().manual_seed(pipe.adapter.collective.rank)
    data = [torch.randn(4, FEATURES, generator=generator) for _ in range(steps)]
    for window in pipe.windows(data):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        pipe.step()


def attached():
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(FEATURES, FEATURES))
    return tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN), model


def full_while_saving(folder):
    pipe, model = attached()
    train(pipe, model, 2)
    pipe.save(folder)
    kept = {name: value.clone() for name, value in pipe.state.slots["residual"].items()}
    train(pipe, model, 1)
    before = {name: value.clone() for name, value in pipe.state.slots["residual"].items()}
    with pytest.raises(tg.CheckpointError) as raised:
        pipe.save(folder)
    assert all(torch.equal(pipe.state.slots["residual"][name], value) for name, value in before.items())
    again, _ = attached()
    again.load(folder)
    assert again.state.step == 2
    assert all(torch.equal(again.state.slots["residual"][name], value) for name, value in kept.items())
    return str(raised.value)


def test_the_checkpoint_before_stays_in_force(small_disk):
    messages = run_ranks(2, full_while_saving, str(small_disk))
    assert all("the previous checkpoint stays valid" in message for message in messages), messages
    assert any("No space left on device" in message for message in messages), messages
