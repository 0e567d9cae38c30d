"""Local updates: against a plain reference, torch's optimizers, and themselves after a resume."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.training import batches, linear, loss_of, on_ranks
from tightgrad.collectives import ThreadedCollective
from tightgrad.plan.local_updates import LocalUpdates

COMPRESSED = {
    "int4": tg.Compress(tg.codecs.IntBlock(4, block_size=8), feedback=tg.ErrorFeedback()),
    "topk": tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()),
    "random": tg.Compress(tg.codecs.RandomK(0.5), feedback=tg.ErrorFeedback("int8")),
    "powersgd": tg.Compress(None, tg.reducers.PowerSGD(1, 1.0), tg.ErrorFeedback()),
    "ef21": tg.Compress(tg.codecs.TopK(0.3), feedback=tg.feedback.EF21()),
}


def compressed(name: str, **settings: Any) -> tg.DiLoCo:
    return tg.DiLoCo(every=3, plan=tg.Plan(compress=COMPRESSED[name], clip=tg.clip.GlobalNorm(0.2)), **settings)


class Replica:
    """A rank that trains with AdamW."""

    def __init__(self, updates: LocalUpdates, collective: Any, model: nn.Module | None = None) -> None:
        self.model = model or linear(seed=collective.rank)  # attach_local has to make them equal
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.outer = tg.attach_local(self.model, updates, collective=collective)
        self.records: list[tg.StepRecord] = []

    def train(self, loader: list[Tensor]) -> None:
        for batch in loader:
            loss_of(self.model, batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            record = self.outer.step()
            if record is not None:
                self.records.append(record)

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def reference(world_size: int, every: int, lr: float, momentum: float, num_steps: int) -> list[Tensor]:
    """One process, float64, written from the papers."""
    anchors = [parameter.detach().double() for parameter in linear(seed=0).parameters()]
    velocity = [torch.zeros_like(anchor) for anchor in anchors]
    models = [linear(seed=0).double() for _ in range(world_size)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.05) for model in models]
    data = [[batch.double() for batch in batches(num_steps, rank)] for rank in range(world_size)]
    for start in range(0, num_steps, every):
        for model, optimizer, own in zip(models, optimizers, data, strict=True):
            for batch in own[start : start + every]:
                optimizer.zero_grad()
                loss_of(model, batch).backward()
                optimizer.step()
        with torch.no_grad():
            for index, anchor in enumerate(anchors):
                replicas = [list(model.parameters())[index] for model in models]
                pseudo = anchor - sum(replicas) / world_size
                velocity[index] = momentum * velocity[index] + pseudo
                anchors[index] = anchor - lr * (pseudo + momentum * velocity[index])
                for replica in replicas:
                    replica.copy_(anchors[index])
    return anchors


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize(
    ("updates", "lr", "momentum"),
    [(tg.DiLoCo(every=4, lr=0.7, momentum=0.9), 0.7, 0.9), (tg.LocalSGD(every=4), 1.0, 0.0)],
    ids=["diloco", "local_sgd"],
)
def test_equals_the_reference(updates: LocalUpdates, lr: float, momentum: float, world_size: int) -> None:
    def body(collective: ThreadedCollective) -> list[Tensor]:
        replica = Replica(updates, collective, linear(seed=collective.rank).double())
        replica.train([batch.double() for batch in batches(12, collective.rank)])
        assert [record.micro_batches for record in replica.records] == [4, 4, 4]
        return replica.weights()

    expected = reference(world_size, 4, lr, momentum, 12)
    results = on_ranks(world_size, body)
    for weights in results:
        for found, wanted in zip(weights, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


def test_the_outer_step_is_torchs_nesterov_to_the_bit() -> None:
    def body(collective: ThreadedCollective) -> None:
        replica = Replica(tg.DiLoCo(every=2, lr=0.5, momentum=0.875), collective)
        anchors = [nn.Parameter(weight) for weight in replica.weights()]
        oracle = torch.optim.SGD(anchors, lr=0.5, momentum=0.875, nesterov=True)
        loader = batches(8, collective.rank)
        for start in range(0, 8, 2):
            replica.train(loader[start : start + 1])
            loss_of(replica.model, loader[start + 1]).backward()
            replica.optimizer.step()
            replica.optimizer.zero_grad()
            for anchor, moved in zip(anchors, replica.weights(), strict=True):
                anchor.grad = collective.all_reduce_((anchor.detach() - moved) * 0.5)
            oracle.step()
            replica.outer.step()
            assert all(map(torch.equal, replica.weights(), anchors))

    assert on_ranks(2, body) == [None, None]


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_ranks_are_bitwise_equal_and_sent_less(name: str) -> None:
    def body(collective: ThreadedCollective) -> tuple[list[Tensor], list[tg.StepRecord], Any]:
        replica = Replica(compressed(name), collective)
        replica.train(batches(12, collective.rank))
        return replica.weights(), replica.records, replica.outer.state_dict()["slots"]["anchor"]

    first, *others = on_ranks(3, body)
    for other in others:
        assert all(map(torch.equal, first[0], other[0]))
        assert all(map(torch.equal, first[2].values(), other[2].values()))
    records = first[1]
    assert all(record.clip_coef <= 1.0 for record in records)
    assert any(record.clip_coef < 1.0 for record in records)
    assert all(record.wire_bytes > 0 for record in records)


def test_what_is_delivered_and_what_is_left_is_all_that_was_put_in() -> None:
    updates = tg.DiLoCo(every=2, lr=1.0, momentum=0.0, plan=tg.Plan(compress=COMPRESSED["topk"]))

    def body(collective: ThreadedCollective) -> tuple[Tensor, Tensor, Tensor]:
        replica = Replica(updates, collective)
        start = replica.model.weight.detach().double().clone()
        put_in = torch.zeros_like(start)
        for batch in batches(20, collective.rank):
            loss_of(replica.model, batch).backward()
            replica.optimizer.step()
            replica.optimizer.zero_grad()
            if replica.outer.num_since == 1:
                anchor = replica.outer.adapter.parameters["weight"].detach().double()
                put_in += (anchor - replica.model.weight.detach().double()) / 2
            replica.outer.step()
        left = replica.outer.state.slots["residual"]["weight"].double()
        return put_in, left, start - replica.model.weight.detach().double()

    results = on_ranks(2, body)
    put_in, left = (sum(result[part] for result in results) for part in (0, 1))
    assert float(left.norm()) > 0
    torch.testing.assert_close(results[0][2] + left, put_in, rtol=0, atol=1e-5)


def test_nan_on_one_rank_takes_all_ranks_back_to_where_they_met() -> None:
    updates = tg.DiLoCo(every=2, plan=tg.Plan(compress=COMPRESSED["topk"], guard=tg.Guard("skip")))

    def body(collective: ThreadedCollective) -> None:
        replica = Replica(updates, collective)
        replica.train(batches(2, collective.rank))
        met, slots = replica.weights(), replica.outer.state.slots
        replica.train(batches(1, collective.rank))
        with torch.no_grad():
            replica.model.bias.fill_(torch.nan if collective.rank == 1 else 1.0)
        record = replica.outer.step()
        assert record.skipped
        assert record.skip_reason == "nonfinite"
        assert all(map(torch.equal, met, replica.weights()))
        assert replica.outer.state.slots is slots

    assert on_ranks(3, body) == [None] * 3


def test_nan_raises_on_every_rank_and_changes_nothing() -> None:
    def body(collective: ThreadedCollective) -> None:
        replica = Replica(tg.LocalSGD(every=1), collective)
        with torch.no_grad():
            replica.model.bias.fill_(torch.inf if collective.rank == 1 else 1.0)
        before = replica.weights()
        with pytest.raises(tg.NonFiniteGradientError, match=r"bias \(2 entries on rank 1\)"):
            replica.outer.step()
        assert all(map(torch.equal, before, replica.weights()))
        assert replica.outer.state.step == 0

    assert on_ranks(2, body) == [None, None]


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("stop", [6, 7], ids=["between rounds", "in mid-round"])
def test_resume_is_bit_identical(tmp_path: Path, name: str, stop: int) -> None:
    def body(collective: ThreadedCollective) -> None:
        loader = batches(12, collective.rank)
        straight = Replica(compressed(name), collective)
        straight.train(loader)
        stopped = Replica(compressed(name), collective)
        stopped.train(loader[:stop])
        stopped.outer.save(tmp_path)
        own = copy.deepcopy((stopped.model.state_dict(), stopped.optimizer.state_dict()))
        resumed = Replica(compressed(name), collective)
        resumed.optimizer.load_state_dict(own[1])
        if stop % 3:  # between rounds the anchors are enough
            resumed.model.load_state_dict(own[0])
        assert resumed.outer.load(tmp_path) == stop
        resumed.train(loader[stop:])
        assert all(map(torch.equal, straight.weights(), resumed.weights()))

    assert on_ranks(2, body) == [None, None]


def test_another_number_of_ranks_keeps_the_sum_of_residuals(tmp_path: Path) -> None:
    def save(collective: ThreadedCollective) -> tuple[Tensor, list[Tensor]]:
        replica = Replica(compressed("topk"), collective)
        replica.train(batches(6, collective.rank))
        replica.outer.save(tmp_path)
        return replica.outer.state.slots["residual"]["weight"], replica.weights()

    def load(collective: ThreadedCollective) -> tuple[Tensor, list[Tensor]]:
        replica = Replica(compressed("topk"), collective)
        replica.outer.load(tmp_path)
        found = replica.outer.state.slots["residual"].get("weight"), replica.weights()
        replica.train(batches(3, collective.rank))
        assert len(replica.records) == 1
        return found

    before, after = on_ranks(2, save), on_ranks(3, load)
    held = [residual if residual is not None else torch.zeros(2, 3) for residual, _ in after[:2]]
    assert torch.equal(sum(residual for residual, _ in before), sum(held))
    assert all(torch.equal(mine, saved) for mine, saved in zip(after[2][1], before[0][1], strict=True))


def test_in_mid_round_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    def save(collective: ThreadedCollective) -> None:
        replica = Replica(compressed("topk"), collective)
        replica.train(batches(4, collective.rank))
        replica.outer.save(tmp_path)

    def load(collective: ThreadedCollective) -> None:
        replica = Replica(compressed("topk"), collective)
        before = replica.weights()
        with pytest.raises(tg.StateMismatchError, match="mid-round by 2 ranks"):
            replica.outer.load(tmp_path)
        assert all(map(torch.equal, before, replica.weights()))

    assert on_ranks(2, save) == [None, None]
    assert on_ranks(3, load) == [None, None, None]


def test_a_gradient_pipelines_checkpoint_is_refused(tmp_path: Path) -> None:
    model = linear()
    plan = tg.Plan(compress=COMPRESSED["topk"])
    tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan).save(tmp_path)
    outer = tg.attach_local(linear(), tg.LocalSGD(plan=plan))
    with pytest.raises(tg.StateMismatchError, match="local updates"):
        outer.load(tmp_path)


def test_meeting_early_ends_the_round() -> None:
    replica = Replica(tg.LocalSGD(every=4), tg.collectives.SingleCollective())
    replica.train(batches(3))
    assert replica.outer.outer_step().micro_batches == 3
    replica.train(batches(4))
    assert [record.micro_batches for record in replica.records] == [4]
    assert (replica.outer.num_local_steps, replica.outer.num_since) == (7, 0)


def test_bfloat16_weights_have_float32_anchors() -> None:
    """Steps that are lost on the weights add up on the anchors."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    outer = tg.attach_local(model, tg.DiLoCo(every=1, lr=0.125, momentum=0.0))
    for _ in range(8):
        with torch.no_grad():
            model.weight.sub_(2.0**-7)
        outer.step()
    assert model.weight.dtype is torch.bfloat16
    assert outer.adapter.parameters["weight"].dtype is torch.float32
    assert float(outer.adapter.parameters["weight"].detach()) < 1.0 - 2.0**-8


def test_buffers_are_rank_0s_after_meeting() -> None:
    def body(collective: ThreadedCollective) -> tuple[Tensor, Tensor]:
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        outer = tg.attach_local(model, tg.LocalSGD(every=1), collective=collective)
        model(batches(1, collective.rank)[0])
        own = model[1].running_mean.clone()
        outer.step()
        return own, model[1].running_mean.clone()

    (first, met), (other, met_too) = on_ranks(2, body)
    assert not torch.equal(first, other)
    assert torch.equal(met, met_too)
    assert torch.equal(first, met)


def test_a_frozen_parameter_is_the_same_everywhere_and_not_sent() -> None:
    def body(collective: ThreadedCollective) -> tuple[int, Tensor]:
        model = linear(seed=collective.rank)
        model.bias.requires_grad_(False)
        outer = tg.attach_local(model, tg.LocalSGD(every=1), collective=collective)
        record = outer.step()
        return record.wire_bytes, model.bias.clone()

    (nbytes, bias), (_, other) = on_ranks(2, body)
    assert torch.equal(bias, other)
    assert linear().weight.numel() * 4 <= nbytes < 2 * 4 * 6


def different(rank: int) -> str:
    import torch.distributed as dist

    with pytest.raises(tg.RankMismatchError, match="plan differ"):
        tg.attach_local(linear(), tg.DiLoCo(every=3 + dist.get_rank()))
    with pytest.raises(tg.UnsupportedError, match=r"model\.module"):
        tg.attach_local(DistributedDataParallel(linear()), tg.DiLoCo())
    return "refused"


def averaged_by_torch(num_steps: int, every: int) -> list[Tensor]:
    """torch's own local SGD, on the ranks of the default group."""
    import torch.distributed as dist
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

    model = linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    averager = PeriodicModelAverager(period=every, warmup_steps=every - 1)
    for batch in batches(num_steps, dist.get_rank()):
        loss_of(model, batch).backward()
        optimizer.step()
        averager.average_parameters(model.parameters())
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def on_gloo() -> tuple[str, list[Tensor], list[Tensor], int]:
    import torch.distributed as dist

    refused = different(dist.get_rank())
    torchs = averaged_by_torch(13, 4)
    model = linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    outer = tg.attach_local(model, tg.LocalSGD(every=4))
    sent = 0
    for batch in batches(13, dist.get_rank()):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        record = outer.step()
        sent += record.wire_bytes if record else 0
    return refused, torchs, [parameter.detach().clone() for parameter in model.parameters()], sent


def test_on_real_ranks_local_sgd_is_torchs() -> None:
    for refused, torchs, ours, sent in run_ranks(2, on_gloo):
        assert refused == "refused"
        for wanted, found in zip(torchs, ours, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
        assert sent > 0


def test_meet_is_the_earlier_name_of_an_outer_step():
    weights = []
    for name in ("outer_step", "meet"):
        replica = Replica(tg.DiLoCo(every=100), tg.collectives.SingleCollective(), linear(seed=0))
        replica.train(batches(2))
        assert getattr(replica.outer, name)().step == 0
        weights.append(replica.model.weight.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("kind", [tg.DiLoCo, tg.LocalSGD])
def test_a_subclass_has_no_json(kind):
    own = type("Own", (kind,), {})(every=2)
    with pytest.raises(tg.ConfigError, match="Own has no id that JSON could name it by"):
        own.to_json()
