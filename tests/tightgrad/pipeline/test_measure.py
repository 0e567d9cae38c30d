"""An empty plan measures loss and gradient norm where `attach` is told to, and changes nothing by it; a record's
weight is the sum of what micro-batches counted, whatever the plan.
"""

import pytest
import torch

import tightgrad as tg
from tightgrad.collectives import run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import Collective


def model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "sparse":
        return torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    if kind == "tied":
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
        net[2].weight = net[0].weight
        return net
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    net[2].bias.requires_grad_(kind != "frozen")
    return net


def batch_of(kind: str) -> torch.Tensor:
    return torch.randint(10, (3, 2)) if kind == "sparse" else torch.randn(3, 4)


@pytest.mark.parametrize("kind", ["dense", "frozen", "sparse", "tied"])
def test_loss_and_norm_are_those_of_plain_torch(kind: str) -> None:
    net, plain = model(kind), model(kind)
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), tg.Plan(), measure=True)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for window in pipe.windows([batch_of(kind) for _ in range(3)]):
        for batch in window:
            loss = net(batch).square().mean()
            pipe.backward(loss)
        record = pipe.step()
        optimizer.zero_grad()
        expected = plain(batch).square().mean()
        expected.backward()
        grads = [p.grad.to_dense() for p in plain.parameters() if p.grad is not None]
        assert record.loss == expected.item()
        assert record.grad_norm == pytest.approx(float(torch.nn.utils.get_total_norm(grads)), rel=1e-6)
        assert record.clip_coef is None
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True)), "bitwise"


def test_without_it_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model("dense")
    stages: list[str] = []
    timed = StageClock.__call__
    monkeypatch.setattr(StageClock, "__call__", lambda self, stage: stages.append(stage) or timed(self, stage))
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), tg.Plan())
    for window in pipe.windows([torch.randn(3, 4)]):
        for batch in window:
            pipe.backward(net(batch).square().mean())
        record = pipe.step()
    assert (record.loss, record.grad_norm) == (None, None)
    assert stages == ["backward", "optimizer"]


def test_an_optimizer_that_steps_in_backward_leaves_no_norm() -> None:
    net = torch.nn.Linear(4, 1, bias=False)
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), tg.Plan(), measure=True)
    net.weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    for window in pipe.windows([torch.ones(3, 4)]):
        for batch in window:
            pipe.backward(net(batch).square().mean())
        record = pipe.step()
    assert record.grad_norm is None
    assert record.loss is not None


def test_a_loss_that_is_nan_is_shown_as_it_is() -> None:
    net = model("dense")
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), lr=0.0), tg.Plan(), measure=True)
    for window in pipe.windows([torch.full((3, 4), torch.nan)]):
        for batch in window:
            pipe.backward(net(batch).square().mean())
        record = pipe.step()
    assert record.loss != record.loss
    assert record.grad_norm != record.grad_norm


ACCUMULATES = {"one": tg.Accumulate(micro_batches=1), "three": tg.Accumulate(micro_batches=3)}
PLANS = {
    "empty": tg.Plan(),
    "guard": tg.Plan(guard=tg.Guard()),
    "clip": tg.Plan(clip=tg.clip.GlobalNorm(1e9)),
    **{name: tg.Plan(accumulate=accumulate) for name, accumulate in ACCUMULATES.items()},
    "one at a time": tg.Plan(accumulate=tg.Accumulate(micro_batches=3, fetch="batch")),
}
WEIGHTS = {"default": None, "tokens": lambda batch: 10 * len(batch)}


def stepped(collective: Collective, plan: str, weight: str) -> list[tuple[float, float, torch.Tensor, torch.Tensor]]:
    """For each step: its record's weight, what this rank's micro-batches counted, the sum of count times gradient on
    this rank, and what the optimizer was given.
    """
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 1, bias=False)
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    ranks = collective if collective.world_size > 1 else None
    pipe = tg.attach(net, sgd, PLANS[plan], weight=WEIGHTS[weight], collective=ranks)
    generator, found = torch.Generator().manual_seed(collective.rank), []
    for window in pipe.windows([torch.randn(1 + i % 3, 3, generator=generator) for i in range(7)]):
        before, weighted, seen = net.weight.detach().clone(), torch.zeros(1, 3), []
        for batch in window:
            seen.append(batch)
            pipe.backward(net(batch).square().mean())
        counts = [row["loss"] for row in window.weights]
        for batch, count in zip(seen, counts, strict=True):
            weighted += count * 2 * (before @ batch.T) @ batch / len(batch)
        record = pipe.step()
        found.append((record.weight, sum(counts), weighted, before - net.weight.detach()))
    return found


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_records_weight_is_what_the_gradient_is_divided_by(ranks: int, plan: str, weight: str) -> None:
    by_rank = run_threaded(ranks, lambda collective: stepped(collective, plan, weight))
    for steps in zip(*by_rank, strict=True):
        total = sum(counted for _, counted, _, _ in steps)
        target = sum(weighted for _, _, weighted, _ in steps) / total
        for recorded, _, _, given in steps:
            assert recorded == total
            torch.testing.assert_close(given, target, rtol=1e-4, atol=1e-6)
    counts = [step[0] for step in by_rank[0]]
    if plan == "empty" or (plan in ("guard", "clip") and weight == "default"):
        expected = [ranks] * 7
    else:
        samples = [1 + i % 3 for i in range(7)]
        size = 3 if plan in ("three", "one at a time") else 1
        each = 10 if weight == "tokens" else 1
        expected = [each * ranks * sum(samples[i : i + size]) for i in range(0, 7, size)]
    if not (plan == "empty" and ranks == 2 and weight == "tokens"):  # there it gets a guard, and weights count
        assert counts == expected
