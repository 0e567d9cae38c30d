"""DiLoCo against torchft's: its real manager, lighthouse and gloo process group, one process a replica.

torchft is in no extra: `pip install torchft==0.2.0` leaves torch 2.13 as it is.
"""

import os
import tempfile
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import tightgrad as tg
from support.training import batches, linear, loss_of
from support.waiting import patience

EVERY, STEPS, LR, MOMENTUM = 4, 12, 0.7, 0.9
RANKS = 2
SECONDS = patience(120)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def with_torchft(rank: int, lighthouse: str) -> tuple[list[Tensor], int]:
    from torchft.local_sgd import DiLoCo
    from torchft.manager import Manager
    from torchft.process_group import ProcessGroupGloo

    limit = timedelta(seconds=SECONDS / 4)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(timeout=limit),
        min_replica_size=RANKS,
        load_state_dict=lambda state: None,
        state_dict=dict,
        replica_id=f"replica{rank}",
        rank=0,
        world_size=1,
        store_addr="localhost",
        store_port=store.port,
        hostname="localhost",
        lighthouse_addr=lighthouse,
        use_async_quorum=False,
        init_sync=False,
        timeout=limit,
    )
    model = linear()
    inner = torch.optim.AdamW(model.parameters(), lr=0.05)
    outer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True)
    with DiLoCo(manager, [model], inner, outer, sync_every=EVERY):
        for batch in batches(STEPS, rank):
            inner.zero_grad()
            loss_of(model, batch).backward()
            inner.step()
    steps = manager.current_step()
    manager.shutdown(wait=False)
    return weights(model), steps


def with_tightgrad(rank: int, folder: str) -> tuple[list[Tensor], int]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    model = linear(seed=rank)
    inner = torch.optim.AdamW(model.parameters(), lr=0.05)
    outer = tg.attach_local(model, tg.DiLoCo(every=EVERY, lr=LR, momentum=MOMENTUM))
    for batch in batches(STEPS, rank):
        loss_of(model, batch).backward()
        inner.step()
        inner.zero_grad()
        outer.step()
    dist.destroy_process_group()
    return weights(model), outer.state.step


def replica(rank: int, lighthouse: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    found = [with_torchft(rank, lighthouse), with_tightgrad(rank, folder)]
    torch.save(found, f"{folder}/writing{rank}")
    os.rename(f"{folder}/writing{rank}", f"{folder}/found{rank}")


@pytest.mark.slow
def test_the_same_bits_as_torchft() -> None:
    pytest.importorskip("torchft", reason="pip install torchft==0.2.0")
    from torchft._torchft import LighthouseServer

    context = mp.get_context("spawn")
    lighthouse = LighthouseServer(bind="[::]:0", min_replicas=RANKS)
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=replica, args=(r, lighthouse.address(), folder)) for r in range(RANKS)]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join(SECONDS)
            for rank in range(RANKS):
                (theirs, their_steps), (ours, our_steps) = torch.load(f"{folder}/found{rank}")
                assert their_steps == our_steps == STEPS // EVERY
                assert all(map(torch.equal, ours, theirs))
        finally:
            for process in processes:
                process.kill()
                process.join()
            lighthouse.shutdown()
