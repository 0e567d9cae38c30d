"""DDP's communication hook where parameters are not contiguous, gradients are sparse, or the module is copied."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks

CAST = tg.codecs.Cast("float32")
OVERLAPPED = tg.Compress(CAST, overlap="backward")


class Held(nn.Module):
    """Loss: the mean over samples of the inner product with the weight, whose gradient is the mean of the batch."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(3))

    def forward(self, batch):
        return (batch * self.weight).flatten(1).sum(1).mean() + self.bias.sum()


WEIGHTS = {
    "transposed": lambda: torch.zeros(6, 4).T,
    "channels_last": lambda: torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.zeros(4, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
    "every second entry": lambda: torch.zeros(4, 12)[:, ::2],
}


def data(shape, rank, index):
    return torch.randn(2 + rank, *shape, generator=torch.Generator().manual_seed(10 * rank + index))


def layouts(is_view):
    """How far the gradient is from the mean over all samples, for each layout and way."""
    rank, far = dist.get_rank(), {}
    for name, make in WEIGHTS.items():
        shape = make().shape
        everything = torch.cat([data(shape, r, index) for r in range(2) for index in range(2)]).double().mean(0)
        model = DistributedDataParallel(Held(make()), gradient_as_bucket_view=is_view)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(2), compress=OVERLAPPED))
        for window in pipe.windows([data(shape, rank, index) for index in range(2)]):
            for batch in window:
                pipe.backward(model(batch))
            pipe.step()
        far[name, "overlap"] = float((model.module.weight.detach().double() + everything).abs().max())
        hooked = DistributedDataParallel(Held(make()), gradient_as_bucket_view=is_view)
        one_rank = tg.reducers.PowerSGD(approximation_rank=1, min_compression_factor=1.0)
        tg.ddp_comm_hook(hooked, tg.Compress(reducer=one_rank, feedback=tg.ErrorFeedback()))
        product = torch.outer(torch.arange(1.0, 5.0), torch.arange(shape.numel() // 4) - 2.5).reshape(shape)
        hooked(product[None]).backward()  # of rank one, and therefore delivered whole
        far[name, "hook"] = float((hooked.module.weight.grad - product).abs().max() / product.abs().max())
    return far


@pytest.mark.parametrize("is_view", [False, True])
def test_gradients_of_parameters_that_are_not_contiguous(is_view):
    for far in run_ranks(2, layouts, is_view):
        assert max(far.values()) < 1e-6, far


def told():
    """What is refused, by name."""
    found = {}
    for way in ("attach", "hook"):
        embedding = DistributedDataParallel(nn.Embedding(8, 2, sparse=True))
        found["sparse", way] = one_backward(embedding, torch.optim.SparseAdam, torch.arange(4), way)
        later = DistributedDataParallel(Held(torch.zeros(4, 3, 2, 2)))
        later.to(memory_format=torch.channels_last)
        found["later", way] = one_backward(later, torch.optim.SGD, data((4, 3, 2, 2), 0, 0), way)
    return found


def one_backward(model, kind, batch, way):
    try:
        if way == "hook":
            tg.ddp_comm_hook(model, tg.Compress(CAST))
            model.to(memory_format=torch.contiguous_format)
            model(batch).sum().backward()
            return None
        pipe = tg.attach(model, kind(model.parameters(), lr=0.1), tg.Plan(compress=OVERLAPPED))
        model.to(memory_format=torch.contiguous_format)
        for window in pipe.windows([batch]):
            for rows in window:
                pipe.backward(model(rows).sum())
    except tg.TightGradError as error:
        return str(error)


def test_what_buckets_cannot_hold_is_named():
    for found in run_ranks(2, told):
        for way in ("attach", "hook"):
            assert "the gradient of 'weight' is sparse; build its layer with sparse=False" in found["sparse", way]
            assert "'weight' has other strides" in found["later", way]
            assert "before wrapping the model" in found["later", way]


def copied(way):
    """A copy, and what a pickle holds, are plain DDP modules; the hook of the first goes on."""
    model = DistributedDataParallel(Held(torch.zeros(4, 6)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batch = data((4, 6), dist.get_rank(), 0)
    kept = tg.ddp_comm_hook(model, tg.Compress(CAST)) if way == "hook" else tg.attach(model, optimizer, PLAN)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged(batch).backward()
    averages = {"averaged": averaged.module, "pickled": pickle.loads(pickle.dumps(model)), "copy": copy.deepcopy(model)}
    inner = pickle.loads(pickle.dumps(model.module))
    inner(batch).backward()
    gradients = {"inner": inner.weight.grad}
    for name, one in averages.items():
        one.zero_grad()
        one(batch).backward()
        gradients[name] = one.module.weight.grad
    overlapped = tg.attach(averages["copy"], torch.optim.SGD(averages["copy"].parameters(), lr=1.0), PLAN)
    for window in overlapped.windows([batch]):
        for rows in window:
            overlapped.backward(averages["copy"](rows))
        overlapped.step()
    gradients["attached"] = -averages["copy"].module.weight.detach()
    with pytest.raises(tg.UsageError, match=r"join\(\) cannot be had"):
        model.join()
    del kept
    with averages["averaged"].join():
        pass
    return gradients


PLAN = tg.Plan(compress=OVERLAPPED)


@pytest.mark.parametrize("way", ["attach", "hook"])
def test_a_copy_of_a_hooked_module_has_no_hook(way):
    expected = torch.stack([data((4, 6), rank, 0).mean(0) for rank in range(2)]).mean(0)
    for rank, gradients in enumerate(run_ranks(2, copied, way)):
        torch.testing.assert_close(gradients.pop("inner"), data((4, 6), rank, 0).mean(0))
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected, msg=name)


def joined_around(order):
    model = DistributedDataParallel(Held(torch.zeros(4, 6)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    plan = tg.Plan(compress=tg.Compress(CAST))
    pipe = tg.attach(model, optimizer, plan) if order == "attach first" else None
    with model.join():
        pipe = pipe or tg.attach(model, optimizer, plan if order == "explicit" else PLAN)
        try:
            for _ in pipe.windows([data((4, 6), 0, 0)] * (1 + dist.get_rank())):
                pipe.step()
        except tg.UsageError as error:
            return str(error)


@pytest.mark.parametrize("order", ["attach first", "explicit", "overlap"])
def test_join_around_windows_that_sum_by_themselves(order):
    for told in run_ranks(2, joined_around, order):
        assert "Leave `with model.join():` out: pipe.windows() takes loaders of unequal length" in told
