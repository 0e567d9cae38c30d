"""Z7: ranks that were given different settings."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from tightgrad_lab.experiments.fragile import outcomes

RANKS = 2
COLLECTIVE_SECONDS = 4.0

PLANS = {
    "another size": (tg.codecs.TopK(0.1), tg.codecs.TopK(0.2)),
    "as many bytes, another dtype": (tg.codecs.Cast("bfloat16"), tg.codecs.Cast("float16")),
    "another collective": (tg.codecs.IntBlock(8), tg.codecs.TopK(0.1)),
}


def torch_collective(name: str) -> str:
    """What the hooks of two ranks with different settings come down to."""
    first = dist.get_rank() == 0
    ones = torch.ones(8)
    if name == "another size":
        ones = torch.ones(8 if first else 4)
        dist.all_reduce(ones)
    elif name == "as many bytes, another dtype":
        ones = torch.ones(8, dtype=torch.bfloat16 if first else torch.float16)
        dist.all_reduce(ones)
    elif first:
        dist.all_reduce(ones)
    else:
        dist.all_to_all_single(torch.empty(8), ones)
    right = bool((ones == RANKS).all())
    return "sum" if right else f"no error, 1 + 1 = {float(ones[0]):.3g}"


def with_tightgrad(name: str) -> str:
    model = DistributedDataParallel(torch.nn.Linear(8, 8))
    try:
        codec = PLANS[name][dist.get_rank()]
        tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(compress=tg.Compress(codec)))
    except tg.RankMismatchError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", PLANS)
def test_z7_different_settings(name, field_row):
    for text in run_ranks(RANKS, with_tightgrad, name):
        assert "plan differ on rank 1" in text
        assert "Give every rank the same plan" in text
    peer = outcomes(
        RANKS, torch_collective, name, seconds=3 * COLLECTIVE_SECONDS, collective_seconds=COLLECTIVE_SECONDS
    )
    field_row(
        f"Z7 ranks differ: {name}",
        "torch",
        " / ".join(peer),
        "RankMismatchError names plan and rank, on both",
        peer_is_wrong=set(peer) != {"RankMismatchError"},
    )
