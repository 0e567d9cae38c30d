"""Wrappers that reduce by themselves give the gradient of one big batch: ragged, partial, and with unequal loaders."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full, ragged_batches, small_model, wrap

# One rounding of a float32 sum of a few dozen terms stays well below this.
TOLERANCE = 1e-6
CASES = [
    (kind, sync, fetch, k)
    for kind in ("ddp", "fsdp2", "hsdp")
    for sync in ("last", "every")
    for fetch in ("window", "batch")
    for k in (1, 3)
]


class Recorder(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.gradients = []

    def step(self, closure=None):
        grads = [full(p.grad).flatten() for group in self.param_groups for p in group["params"]]
        self.gradients.append(torch.cat(grads))
        super().step()


def train_all(cases):
    results = {}
    for kind, sync, fetch, k in cases:
        model = wrap(small_model(), kind)
        optimizer = Recorder(model.parameters())
        pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(k, sync=sync, fetch=fetch)))
        records = []
        for window in pipe.windows(ragged_batches(dist.get_rank())):
            for inputs, labels in window:
                pipe.backward(F.cross_entropy(model(inputs), labels))
            records.append(pipe.step())
        results[kind, sync, fetch, k] = (
            optimizer.gradients,
            [r.wire_bytes for r in records],
            [r.grad_norm for r in records],
        )
    return results


def target(world_size, k):
    model = small_model().double()
    optimizer = Recorder(model.parameters())
    loaders = [ragged_batches(rank) for rank in range(world_size)]
    for start in range(0, len(loaders[0]), k):
        batches = [batch for loader in loaders for batch in loader[start : start + k]]
        inputs = torch.cat([inputs for inputs, _ in batches]).double()
        labels = torch.cat([labels for _, labels in batches])
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return optimizer.gradients


OF_TWO = [case for case in CASES if case[0] != "hsdp"]
OF_FOUR = [case for case in CASES if case[0] == "hsdp" and case[2:] in (("window", 3), ("batch", 1))]


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        pytest.param(1, OF_TWO, id="1"),
        pytest.param(2, OF_TWO, id="2"),
        pytest.param(4, OF_FOUR, id="4"),
        pytest.param(4, CASES, id="4 all", marks=pytest.mark.slow),
    ],
)
def test_delivered_gradient_is_that_of_one_big_batch(world_size, cases):
    ranks = run_ranks(world_size, train_all, cases)
    assert list(ranks[0]) == cases
    for (kind, sync, fetch, k), (gradients, _wire_bytes, norms) in ranks[0].items():
        expected = target(world_size, k)
        assert len(gradients) == len(expected)
        for step, (got, want) in enumerate(zip(gradients, expected, strict=True)):
            error = float((got.double() - want).norm() / want.norm())
            assert error < TOLERANCE, (kind, sync, fetch, k, step)
            assert norms[step] == pytest.approx(float(want.norm()), rel=TOLERANCE)
        for other in ranks[1:]:
            assert all(map(torch.equal, other[kind, sync, fetch, k][0], gradients)), (kind, sync, fetch, k)
        if world_size > 1 and k == 3:
            last, every = ranks[0][kind, "last", fetch, 3][1], ranks[0][kind, "every", fetch, 3][1]
            assert 0 < last[0] < every[0], "every micro-batch is sent with sync=every"
