"""A payload that arrives damaged on one rank: every rank raises, no rank has applied the step, and nobody waits.

What cannot be noticed from the payload itself, a value that turned into another, shows in the norm of what was
delivered; ranks go on only where it is the same on all of them to 1e-5.
"""

import random

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from conformance.cases import CODECS, REDUCERS
from conformance.turns import in_turn
from faults.mutations import BYTES, HUGE
from support.ranks import run_ranks
from support.training import on_ranks
from tightgrad.collectives import ThreadedCollective, TorchCollective
from tightgrad.core.protocols import Codec, Reducer

PAIRS = [
    (reducer, codec)
    for reducer in (case.reducer for case in REDUCERS)
    for codec in CODECS
    if reducer.refuses(codec) is None
]
QUICK = in_turn([(codec, reducer) for reducer, codec in PAIRS])
# Of the same length: what a collective delivers has the length that was asked for.
KINDS = ("bits", "bytes", "noise", "same", "count", "number")


class Damaging(ThreadedCollective):
    """Changes what this rank receives, once armed."""

    draw: random.Random | None = None

    def all_gather(self, tensor: Tensor) -> Tensor:
        return self._damaged(super().all_gather(tensor))

    def all_to_all(self, chunks, receive_numels) -> list[Tensor]:
        return [self._damaged(chunk) for chunk in super().all_to_all(chunks, receive_numels)]

    def split(self, groups):
        part = super().split(groups)
        part.__class__, part.draw = Damaging, self.draw
        return part

    def _damaged(self, received: Tensor) -> Tensor:
        if self.draw is None or received.dtype is not torch.uint8 or not received.numel():
            return received
        data = BYTES[self.draw.choice(KINDS)](bytearray(received.numpy().tobytes()), self.draw)
        return torch.frombuffer(data, dtype=torch.uint8).view(received.shape)


def model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(9, 31), torch.nn.Linear(31, 5))


def step(pipe, net, rank) -> None:
    for window in pipe.windows([torch.randn(4, 9, generator=torch.Generator().manual_seed(rank))]):
        for batch in window:
            pipe.backward(net(batch).square().mean())
        pipe.step()


@pytest.mark.parametrize(
    ("reducer", "codec"),
    [pair if place in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for place, pair in enumerate(PAIRS)],
    ids=lambda value: repr(value)[:70],
)
def test_damage_on_one_rank_ends_the_step_on_all_or_on_none(reducer: Reducer, codec: Codec) -> None:
    plan = tg.Plan(
        compress=tg.Compress(codec, reducer, tg.ErrorFeedback()), guard=tg.Guard("skip", max_consecutive_skips=99)
    )

    def body(collective: ThreadedCollective) -> list[str]:
        collective.__class__ = Damaging
        net = model()
        pipe = tg.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), plan, collective=collective)
        step(pipe, net, collective.rank)
        outcomes = []
        for seed in range(4):
            before = [parameter.detach().clone() for parameter in net.parameters()]
            slots = pipe.state.slots
            collective.draw = random.Random(seed) if collective.rank == 1 else None
            try:
                step(pipe, net, collective.rank)
                outcomes.append("went on")
            except (tg.PayloadError, tg.RankMismatchError) as error:
                assert pipe.state.slots is slots
                assert all(map(torch.equal, before, net.parameters()))
                outcomes.append(str(error).split(" received")[0])
            collective.draw = None
        return outcomes

    mine, other, third = on_ranks(3, body)
    assert isinstance(mine, list), mine
    assert mine == other == third, "a rank went on alone"


def check(name: str, codec: Codec) -> None:
    """Structural damage, of which there is no doubt."""
    plan = tg.Plan(compress=tg.Compress(codec, feedback=tg.ErrorFeedback()))
    net = DistributedDataParallel(model())
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), plan)
    step(pipe, net, dist.get_rank())
    gather = TorchCollective.all_gather

    def damaged(self: TorchCollective, tensor: Tensor) -> Tensor:
        received = gather(self, tensor)
        if dist.get_rank() == 1 and received.dtype is torch.uint8:
            received[:, :200] = 255
        return received

    TorchCollective.all_gather = damaged
    before = [parameter.detach().clone() for parameter in net.parameters()]
    try:
        step(pipe, net, dist.get_rank())
    except tg.PayloadError as error:
        assert all(map(torch.equal, before, net.parameters()))
        return str(error)
    finally:
        TorchCollective.all_gather = gather


@pytest.mark.parametrize(
    "codec",
    [tg.codecs.TopK(0.1), tg.codecs.Threshold(1e-4), tg.codecs.QSGD(1, coding="elias"), tg.codecs.TernGrad()],
    ids=repr,
)
def test_on_real_ranks_every_rank_raises(codec: Codec) -> None:
    first, second = run_ranks(2, check, "all_gather", codec)
    assert first == (
        "rank 1 received payloads that cannot be decoded; no rank applies this step. What this rank received was good."
    )
    assert second.startswith("rank 1 received payloads that cannot be decoded; no rank applies this step. Here: ")


@pytest.mark.parametrize("size", HUGE)
def test_a_huge_announced_size_allocates_nothing(size: int) -> None:
    """Every rank sees the sizes that all have told, so all leave out the messages together."""

    class Lying(ThreadedCollective):
        def all_gather(self, tensor: Tensor) -> Tensor:
            told = tensor.dtype is torch.int64 and self.rank == 1 and tensor.numel() == 4
            return super().all_gather(torch.full_like(tensor, size) if told else tensor)

    def body(collective: ThreadedCollective) -> None:
        net = model()
        pipe = tg.attach(
            net,
            torch.optim.SGD(net.parameters(), lr=0.1),
            tg.Plan(compress=tg.Compress(tg.codecs.Threshold(1e-9))),
            collective=collective,
        )
        collective.__class__ = Lying
        step(pipe, net, collective.rank)

    assert [type(error) for error in on_ranks(3, body)] == [tg.PayloadError] * 3
