"""gloo's frames, counted, against what the interface of a network namespace sends."""

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from support.net_ranks import forked
from support.waiting import patience
from tightgrad_lab.bench import framing
from tightgrad_lab.network import NetRank, network, run_in_network, why_not
from tightgrad_lab.network.counters import sent

REASON = why_not()
TIMES = 12
NUMELS = (1, 3, 5, 8, 100, 5000)
IN_PIECES = 100_000  # 400 kB: two ranks exchange it in pieces
SETTLED_SECONDS = 0.02


def test_of_messages() -> None:
    assert framing.of_messages(sent=2, received=1) == 5 * 48
    assert framing.of_all_to_all(3) == framing.of_messages(2, 2)
    assert framing.of_all_gather(3) == framing.of_messages(4, 4)
    assert framing.of_all_reduce(0, 2) == 0
    assert framing.of_all_reduce(1, 2) == framing.of_messages(1, 1), "one segment, which goes around twice"
    assert framing.of_all_reduce(1000, 4) == framing.of_messages(12, 12)


def counted_and_sent(rank: NetRank, send: Any) -> None:
    collective = framing.FramedCollective()
    ranks = rank.ranks
    operations = {
        "all_reduce": lambda numel: collective.all_reduce_(torch.zeros(numel)),
        "all_gather": lambda numel: collective.all_gather(torch.zeros(numel)),
        "start_all_gather": lambda numel: collective.start_all_gather(torch.zeros(numel))(),
        "all_to_all": lambda numel: collective.all_to_all([torch.zeros(numel)] * ranks, [numel] * ranks),
        "broadcast": lambda numel: collective.broadcast_(torch.zeros(numel)),
    }
    for name, operation in operations.items():
        for numel in (*NUMELS, *([IN_PIECES] if ranks == 2 else [])):
            operation(numel)
            dist.barrier()
            time.sleep(SETTLED_SECONDS)
            traffic, frames = collective.traffic, collective.frames
            before, counted = sent(), traffic.nbytes + frames.nbytes
            for _ in range(TIMES):
                operation(numel)
            time.sleep(SETTLED_SECONDS)
            found = torch.tensor([sent().since(before).payload_nbytes, traffic.nbytes + frames.nbytes - counted])
            dist.all_reduce(found)
            if rank.rank == 0:
                send({"operation": name, "numel": numel, "sent": int(found[0]), "counted": int(found[1])})


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_interface_sends_what_is_counted(ranks: int) -> None:
    found: list[dict[str, Any]] = []
    with network(ranks, None) as net, forked():
        run_in_network(net, counted_and_sent, (), found.append, timeout_seconds=patience(100))
    assert len(found) == 5 * (len(NUMELS) + (ranks == 2))  # the operations above
    for row in found:
        apart = abs(row["sent"] - row["counted"]) / (TIMES * ranks)
        assert apart <= max(framing.FRAME_NBYTES, 0.01 * row["counted"] / (TIMES * ranks)), row
