"""A few minutes' look at whether the library runs on a version of torch: README's loop under every wrapper."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full, small_model, wrap


def batches(rank, count=7):
    generator = torch.Generator().manual_seed(rank)
    return [
        {"inputs": torch.randn(4, 20, generator=generator), "labels": torch.randint(-1, 3, (4,), generator=generator)}
        for _ in range(count)
    ]


def loss_of(model, batch):
    return F.cross_entropy(model(batch["inputs"]), batch["labels"], ignore_index=-1)


def train(pipe, model, loader, stop_after=None):
    records = []
    for window in pipe.windows(loader):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        records.append(pipe.step())
        if len(records) == stop_after:
            break
    return records


def attached(kind, *, compress=None, sync="auto"):
    model = wrap(small_model(), kind)
    plan = tg.Plan(tg.Accumulate(2, loss_reduction="mean", sync=sync), compress, clip=tg.clip.GlobalNorm(1.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, tg.attach(model, optimizer, plan, weight=lambda batch: (batch["labels"] != -1).sum())


def weights(model):
    return [full(parameter) for parameter in model.parameters()]


def big_batch(ranks):
    """Weights after the same windows in float64 on one process."""
    model = small_model().double()
    loaders = [batches(rank) for rank in range(ranks)]
    for start in range(0, 7, 2):
        window = [batch for loader in loaders for batch in loader[start : start + 2]]
        count = sum(int((batch["labels"] != -1).sum()) for batch in window)
        for batch in window:
            inputs, labels = batch["inputs"].double(), batch["labels"]
            (F.cross_entropy(model(inputs), labels, ignore_index=-1, reduction="sum") / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=0.1)
                parameter.grad = None
    return [parameter.detach() for parameter in model.parameters()]


def check_close(found, exact):
    for left, right in zip(found, exact, strict=True):
        assert (left.double() - right).norm() <= 1e-5 * right.norm()


def test_plain():
    model, pipe = attached("plain")
    assert all(record.grad_norm > 0 for record in train(pipe, model, batches(0)))
    check_close(weights(model), big_batch(1))


def test_save_and_load(tmp_path):
    compress = tg.Compress(tg.codecs.TopK(density=0.1), feedback=tg.ErrorFeedback())
    straight, pipe = attached("plain", compress=compress)
    train(pipe, straight, batches(0))
    model, pipe = attached("plain", compress=compress)
    train(pipe, model, batches(0), stop_after=2)
    pipe.save(tmp_path)
    resumed, pipe = attached("plain", compress=compress)
    resumed.load_state_dict(model.state_dict())
    train(pipe, resumed, batches(0)[pipe.load(tmp_path) :])
    assert all(map(torch.equal, weights(straight), weights(resumed)))


def under_wrapper(kind, sync, compresses):
    compress = tg.Compress(tg.codecs.Cast("float32"), feedback=tg.ErrorFeedback()) if compresses else None
    model, pipe = attached(kind, compress=compress, sync=sync)
    records = train(pipe, model, batches(dist.get_rank()))
    return weights(model), [record.wire_bytes for record in records]


@pytest.mark.parametrize(
    ("kind", "sync", "compresses"),
    [
        ("ddp", "auto", False),
        ("ddp", "auto", True),
        ("fsdp2", "last", False),
        ("fsdp2", "every", False),
        ("fsdp2", "last", True),
    ],
)
def test_two_ranks(kind, sync, compresses):
    ranks = run_ranks(2, under_wrapper, kind, sync, compresses)
    exact = big_batch(2)
    for found, wire_bytes in ranks:
        check_close(found, exact)
        assert all(nbytes > 0 for nbytes in wire_bytes)
        assert all(map(torch.equal, found, ranks[0][0]))


def with_hook():
    model = DistributedDataParallel(small_model())
    hook = tg.ddp_comm_hook(model, tg.Compress(tg.codecs.IntBlock(bits=8), feedback=tg.ErrorFeedback()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(dist.get_rank()):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        tg.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return weights(model), hook.num_backwards, hook.residual_norm


def test_the_hook_in_a_loop_of_ones_own():
    (first, count, norm), (second, *_) = run_ranks(2, with_hook)
    assert count == 7
    assert norm > 0
    assert all(map(torch.equal, first, second))
