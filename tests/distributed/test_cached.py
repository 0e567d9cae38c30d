"""`pipe.run_cached` under wrappers: the gradient of all ranks' samples, synchronised once."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.contrastive import SIZE, Captured, Towers, batches, big_batch, flat, relative
from support.in_turn import in_turn
from support.ranks import run_ranks
from support.wrapping import full


class Both(nn.Module):
    """Encodes both views in one forward; gives its temperature along where it is asked to."""

    def __init__(self, gives_scale):
        super().__init__()
        self.towers = Towers()
        self.towers.temperature = nn.Parameter(self.towers.temperature.detach().view(1))  # FSDP2 takes no scalars
        self.gives_scale = gives_scale

    def forward(self, first, second):
        z = self.towers(first), self.towers(second)
        return (*z, self.towers.temperature.squeeze().exp()) if self.gives_scale else z


class Full(torch.optim.SGD):
    """Keeps the whole gradient that it is given, and changes nothing."""

    def step(self, closure=None):
        held = [p for group in self.param_groups for p in group["params"]]
        self.seen = flat(full(p.grad) for p in held)
        return super().step(closure)


def train(kind, micro_batches, where, plan=None, **wrapping):
    model = Both(gives_scale=where == "representations")
    towers = model.towers
    if kind == "fsdp2":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model.towers.body, mesh=mesh)
        model = fully_shard(model, mesh=mesh)
    elif kind == "ddp":
        model = DistributedDataParallel(model, **wrapping)
    optimizer = Full(model.parameters(), lr=0.0)
    plan = plan or tg.Plan(accumulate=tg.Accumulate(micro_batches))
    pipe = tg.attach(model, optimizer, plan, weight=lambda batch: len(batch[0]))

    def loss(z):
        scale = z[2] if where == "representations" else towers.temperature.squeeze().exp()
        return towers.contrast(z[0], z[1], scale)

    losses, grads = [], []
    for window in pipe.windows(batches(micro_batches, dist.get_rank(), dist.get_world_size()) * 2):
        record = pipe.run_cached(window, lambda batch: model(*batch), loss)
        losses.append(record.loss)
        grads.append(optimizer.seen)
    return grads, losses, record.weight


def target():
    """In the order of the parameters of `Both`: a temperature of its own comes first in `Towers`."""
    return big_batch(Towers())


CASES = [
    ("ddp", "loss", {}),
    ("ddp", "representations", {}),
    ("ddp", "representations", {"find_unused_parameters": True}),
    ("ddp", "representations", {"gradient_as_bucket_view": True}),
    ("fsdp2", "representations", {}),
]


@pytest.mark.parametrize(("case", "micro_batches"), in_turn(CASES, [4, 1]))
def test_the_gradient_is_that_of_the_big_batch(case, micro_batches):
    kind, where, wrapping = case
    wanted, value = target()
    for grads, losses, weight in run_ranks(2, train_case, kind, micro_batches, where, wrapping):
        for grad in grads:
            assert relative(grad, wanted) < 1e-6
        assert losses == pytest.approx([value] * 2, rel=1e-6)
        assert weight == SIZE


def train_case(kind, micro_batches, where, wrapping):
    return train(kind, micro_batches, where, **wrapping)


PLANS = {
    "every": tg.Plan(accumulate=tg.Accumulate(4, sync="every")),
    "codec": tg.Plan(accumulate=tg.Accumulate(4), compress=tg.Compress(tg.codecs.Cast("float32"))),
    "overlap": tg.Plan(
        accumulate=tg.Accumulate(4), compress=tg.Compress(tg.codecs.Cast("float32"), overlap="backward")
    ),
}


SUMMED = [("ddp", "loss"), ("ddp", "representations"), ("fsdp2", "representations")]


@pytest.mark.parametrize(("summed", "name"), in_turn(SUMMED, PLANS))
def test_whoever_sums(summed, name):
    kind, where = summed
    wanted, _ = target()
    if kind == "fsdp2" and name == "codec":
        pytest.skip("FSDP2 sums in backward")
    for grads, _, _ in run_ranks(2, train, kind, 4, where, PLANS[name]):
        for grad in grads:
            assert relative(grad, wanted) < 1e-6


def count_syncs():
    """Gradients cross the network once a window under DDP."""
    model = DistributedDataParallel(Both(gives_scale=True))
    calls = []

    def hook(state, bucket):
        calls.append(1)
        future = torch.futures.Future()
        dist.all_reduce(bucket.buffer())
        future.set_result(bucket.buffer() / dist.get_world_size())
        return future

    model.register_comm_hook(None, hook)
    optimizer = Captured(model.parameters())
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(4)), weight=lambda batch: len(batch[0]))
    for window in pipe.windows(batches(4, dist.get_rank(), 2)):
        pipe.run_cached(window, lambda batch: model(*batch), lambda z: Towers.contrast(*z))
    return len(calls), relative(optimizer.seen, target()[0])


def test_ranks_meet_once_a_window():
    for calls, error in run_ranks(2, count_syncs):
        assert calls == 1
        assert error < 1e-6


def refused():
    found = []
    for kind, where, wrapping in (("fsdp2", "loss", {}), ("ddp", "loss", {"find_unused_parameters": True})):
        try:
            train(kind, 2, where, **wrapping)
        except Exception as error:
            found.append((type(error).__name__, str(error)))
    return found


def test_what_cannot_be_had_says_what_can():
    for found in run_ranks(2, refused):
        assert [name for name, _ in found] == ["UnsupportedError"] * 2
        assert all("Return it from encode() as a scalar" in text for _, text in found)


def ragged():
    """A rank whose loader ends first repeats a batch without weight."""
    model = DistributedDataParallel(Both(gives_scale=True))
    optimizer = Captured(model.parameters())
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(4)), weight=lambda batch: len(batch[0]))
    parts = batches(4)[:3] if dist.get_rank() == 0 else batches(4)[3:]
    for window in pipe.windows(parts):
        pipe.run_cached(window, lambda batch: model(*batch), lambda z: Towers.contrast(*z))
    return relative(optimizer.seen, target()[0])


def test_ranks_may_have_different_numbers_of_batches():
    assert max(run_ranks(2, ragged)) < 1e-6
