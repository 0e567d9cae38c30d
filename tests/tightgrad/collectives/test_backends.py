"""What a group runs on, also where torch only repeats what the user wrote, and what derived groups take over."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import small_model
from tightgrad.collectives import TorchCollective
from tightgrad.collectives.backends import backend_name, backends, timeout_of
from tightgrad.collectives.traffic import reduce_scatter_nbytes

CPU = torch.device("cpu")
TIMEOUT = timedelta(seconds=611)
WRITTEN = ("gloo", "undefined", "cpu:gloo", "cpu:gloo,cuda:gloo")
INT8 = tg.codecs.IntBlock(8)


def what_groups_say():
    """For each way to write gloo: what the group and a part of it run on, and bytes that a collective counts."""
    told = []
    for written in WRITTEN:
        group = dist.new_group(backend=written, timeout=TIMEOUT)
        assert dist.get_backend(group) == written
        whole = TorchCollective(group)
        part = whole.split([range(whole.world_size)])
        nested = part.split([[rank] for rank in range(whole.world_size)])
        part.all_reduce_(torch.ones(100))
        told.append(
            {
                "names": [backend_name(CPU, c.group) for c in (whole, part, nested)],
                "configs": [dist.get_backend_config(c.group) for c in (whole, part, nested)],
                "timeouts": [timeout_of(c.group) for c in (whole, part, nested)],
                "control": part.control_device,
                "counted": whole.traffic.nbytes,
            }
        )
    return told


def test_every_way_to_write_gloo_is_gloo():
    for told in run_ranks(2, what_groups_say):
        for written, group in zip(WRITTEN, told, strict=True):
            assert group["names"] == ["gloo"] * 3, written
            assert len(set(group["configs"])) == 1, written
            assert group["timeouts"] == [TIMEOUT] * 3, written
            assert group["control"] == CPU
            assert group["counted"] == told[0]["counted"], "bytes, however gloo was written"
            assert group["counted"] > 0


def derived_groups():
    """Time-outs of the groups that are made behind the user's back."""
    group = dist.new_group(backend="undefined", timeout=TIMEOUT)

    def module():
        return DistributedDataParallel(small_model(), process_group=group)

    hook = tg.ddp_comm_hook(module(), tg.Compress(INT8))
    overlapped = module()
    optimizer = torch.optim.SGD(overlapped.parameters(), lr=0.1)
    pipe = tg.attach(overlapped, optimizer, tg.Plan(compress=tg.Compress(INT8, overlap="backward")))
    nodes = TorchCollective(group)
    tg.reducers.Hierarchical(ranks_per_node=1)._groups(nodes)
    parts = [hook._background, pipe.adapter.hand_over.background, *nodes._parts.values()]
    return [timeout_of(part.group) for part in parts]


def test_groups_of_hook_overlap_and_nodes_wait_as_long_as_their_parent():
    for timeouts in run_ranks(2, derived_groups):
        assert timeouts == [TIMEOUT] * 4


def test_a_backend_that_is_not_a_name_is_refused():
    assert reduce_scatter_nbytes(100, 4, "gloo") == 150
    assert reduce_scatter_nbytes(100, 4, "nccl") == 75
    for written in ("undefined", "cpu:gloo,cuda:nccl"):
        with pytest.raises(tg.ConfigError, match="does not say what sends the tensor"):
            reduce_scatter_nbytes(100, 4, written)


class Nccl:
    """Stands for a machine with NCCL: says what `get_backend_config` gives there."""

    def __init__(self, config):
        self.config = config

    def __call__(self, group=None):
        return self.config


def test_a_device_without_a_backend_is_an_error(monkeypatch):
    monkeypatch.setattr(dist, "get_backend_config", Nccl("cuda:nccl"))
    assert backends() == {"cuda": "nccl"}
    assert backend_name(torch.device("cuda", 1)) == "nccl"
    with pytest.raises(tg.CommunicationError, match="sends tensors of cuda only, not of cpu"):
        backend_name(CPU)
    monkeypatch.setattr(dist, "get_backend_config", Nccl("cpu:gloo,cuda:nccl"))
    assert [backend_name(torch.device(kind)) for kind in ("cpu", "cuda")] == ["gloo", "nccl"]
