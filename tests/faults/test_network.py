"""The network is cut in the middle of a run: a clear error on every rank within the time-out, nothing corrupted."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout  # private in torch 2.13; only gloo and NCCL have it
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.net_ranks import forked
from support.waiting import COLLECTIVE_SECONDS
from tightgrad_lab.network import network, run_in_network, why_not
from tightgrad_lab.network.namespaces import INTERFACE

TIMEOUT_SECONDS = 6.0  # of the collective that waits in vain
CUT_BEFORE = 3
PLAN = tg.Plan(
    compress=tg.Compress(tg.codecs.TopK(density=0.1), feedback=tg.ErrorFeedback(), overlap="none"),
    clip=tg.clip.GlobalNorm(1.0),
)
REASON = why_not()


def state_of(pipe, model):
    weights = {f"weights/{name}": value.clone() for name, value in model.state_dict().items()}
    return weights | {f"residual/{name}": value.clone() for name, value in pipe.state.slots["residual"].items()}


def train(rank, send, folder):
    group = dist.new_group(timeout=timedelta(seconds=COLLECTIVE_SECONDS))
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(64, 64), process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pipe = tg.attach(model, optimizer, PLAN)
    generator = torch.Generator().manual_seed(rank.rank)
    for window in pipe.windows(torch.randn(4, 64, generator=generator) for _ in range(10)):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        if pipe.state.step == CUT_BEFORE:
            pipe.save(folder)
            before = state_of(pipe, model.module)
            send({"ready": rank.rank})
            while not Path(folder, "cut").exists():
                time.sleep(0.05)
            _set_pg_timeout(timedelta(seconds=TIMEOUT_SECONDS), group)
            try:
                pipe.step()
            except tg.CommunicationError as error:
                after = state_of(pipe, model.module)
                kept = all(torch.equal(after[name], value) for name, value in before.items()) and pipe.state.step
                send({"error": str(error), "kept": kept == CUT_BEFORE})
            sys.stderr.flush()
            os._exit(0)  # without the barrier at the end, which would wait for the network
        pipe.step()


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_a_cut_network(tmp_path):
    found, ready = [], set()

    with network(2, None) as net, forked():

        def receive(message):
            if "ready" not in message:
                found.append(message)
                return
            ready.add(message["ready"])
            if len(ready) == 2:
                for name in net.namespaces:
                    subprocess.run(["ip", "-n", name, "link", "set", INTERFACE, "down"], check=True)
                (tmp_path / "cut").touch()

        run_in_network(net, train, (str(tmp_path),), receive, timeout_seconds=2 * COLLECTIVE_SECONDS)
    assert len(found) == 2
    for message in found:
        assert "failed on rank" in message["error"]
        assert "start again from the last checkpoint" in message["error"]
        assert message["kept"]
    assert (tmp_path / "latest").read_text().startswith(f"step-{CUT_BEFORE:08d}")
