"""Loaders that write the next batch into the memory of one that still waits in its window."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import tightgrad as tg
from support.training import linear, on_ranks
from tightgrad.accumulate.reuse import SAMPLE, WHOLE, WaitingBatches, _sample, digest

X, Y = torch.randn(16, 3), torch.randn(16, 2)


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


def one_buffer(slots=1, make=lambda x, y: (x, y)):
    """A ring of buffers, written before each batch."""
    xs, ys = torch.empty(slots, 4, 3), torch.empty(slots, 4, 2)
    for index in range(4):
        x, y = xs[index % slots], ys[index % slots]
        x.copy_(X[4 * index : 4 * index + 4])
        y.copy_(Y[4 * index : 4 * index + 4])
        yield make(x, y)


def same_tensors_written_by_numpy():
    """As C++ writes: torch's counters do not see it."""
    x, y = torch.empty(4, 3), torch.empty(4, 2)
    for index in range(4):
        x.numpy()[:] = X[4 * index : 4 * index + 4].numpy()
        y.numpy()[:] = Y[4 * index : 4 * index + 4].numpy()
        yield x, y


def new_tensors_on_a_numpy_buffer():
    buffer = np.empty((4, 5), np.float32)
    for index in range(4):
        buffer[:, :3], buffer[:, 3:] = X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]
        yield torch.from_numpy(buffer)[:, :3], torch.from_numpy(buffer)[:, 3:]


def data_written():
    x = torch.zeros(4, 3)
    for index in range(4):
        x.data.copy_(X[4 * index : 4 * index + 4])
        yield x, Y[4 * index : 4 * index + 4]


def only_labels():
    y = torch.zeros(4, 2)
    for index in range(4):
        y.copy_(Y[4 * index : 4 * index + 4])
        yield X[4 * index : 4 * index + 4], y


class Slotted:
    __slots__ = ("x", "y")


class Several(list):
    """A list of a class of its own."""


def one_container(container, put=setattr):
    """Filled with new tensors each time."""
    for index in range(4):
        put(container, "x", X[4 * index : 4 * index + 4].clone())
        put(container, "y", Y[4 * index : 4 * index + 4].clone())
        yield container


def refilled_list():
    batch = Several([None, None])
    for index in range(4):
        batch[:] = X[4 * index : 4 * index + 4].clone(), Y[4 * index : 4 * index + 4].clone()
        yield batch


def numbers_in_lists():
    batch = {"x": [], "y": []}
    for index in range(4):
        batch["x"][:] = X[4 * index : 4 * index + 4].tolist()
        batch["y"][:] = Y[4 * index : 4 * index + 4].tolist()
        yield batch


def moved_to_other_memory():
    x = torch.zeros(4, 3)
    for index in range(4):
        yield x.set_(X[4 * index : 4 * index + 4].clone()), Y[4 * index : 4 * index + 4]


def sparse():
    values = torch.zeros(12)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(3)).T
    for index in range(4):
        values.copy_(X[4 * index : 4 * index + 4].flatten())
        yield torch.sparse_coo_tensor(places, values, (4, 3), check_invariants=True), Y[4 * index : 4 * index + 4]


def packed():
    x = torch.zeros(4, 3)
    for index in range(4):
        x.copy_(X[4 * index : 4 * index + 4])
        yield nn.utils.rnn.PackedSequence(x, torch.ones(4, dtype=torch.int64)), Y[4 * index : 4 * index + 4]


def nested():
    x = torch.zeros(4, 3)
    for index in range(4):
        x.copy_(X[4 * index : 4 * index + 4])
        yield torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 1, 4])), Y[4 * index : 4 * index + 4]


REUSING = {
    "one buffer": one_buffer,
    "a ring shorter than the window": lambda: one_buffer(3),
    "mapping": lambda: one_buffer(make=lambda x, y: {"x": x, "more": [y]}),
    "object": lambda: one_buffer(make=Batch),
    "written by numpy": same_tensors_written_by_numpy,
    "new tensors on a numpy buffer": new_tensors_on_a_numpy_buffer,
    "written through .data": data_written,
    "only the labels": only_labels,
    "one dict": lambda: one_container({}, dict.__setitem__),
    "one object": lambda: one_container(Batch(X, Y)),
    "one object with slots": lambda: one_container(Slotted()),
    "one list": refilled_list,
    "numbers in lists": numbers_in_lists,
    "other memory": moved_to_other_memory,
    "sparse": sparse,
    "packed": packed,
    "nested": nested,
}


def unpacked(batch):
    if isinstance(batch, dict):
        x, y = batch["x"], batch["more"][0] if "more" in batch else batch["y"]
    else:
        x, y = (batch.x, batch.y) if hasattr(batch, "x") else batch
    if isinstance(x, list):
        return torch.tensor(x), torch.tensor(y)
    if isinstance(x, nn.utils.rnn.PackedSequence):
        return x.data, y
    return (x.values() if x.is_nested else x.to_dense()), y


def gradient(loader, collective=None, weight=lambda batch: 4.0, **settings):
    model, kept = linear(), []

    class Keeping(torch.optim.SGD):
        def step(self, closure=None):
            kept.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))

    plan = tg.Plan(accumulate=tg.Accumulate(4, **settings))
    pipe = tg.attach(model, Keeping(model.parameters(), lr=0.1), plan, weight=weight, collective=collective)
    for window in pipe.windows(loader):
        for batch in window:
            x, y = unpacked(batch)
            pipe.backward((model(x) - y).square().mean())
        pipe.step()
    return kept


def expected():
    model = linear()
    (model(X) - Y).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("loader", REUSING.values(), ids=REUSING.keys())
def test_a_loader_that_reuses_its_buffer_is_told_of_the_other_fetch(loader):
    with pytest.raises(tg.UsageError, match=r'reuses its buffers.*Accumulate\(fetch="batch"\)'):
        gradient(loader(), fetch="window")
    (found,) = gradient(loader(), fetch="batch")
    torch.testing.assert_close(found, expected())


def test_every_rank_hears_of_it():
    first, second = on_ranks(
        2, lambda ranks: gradient(one_buffer() if ranks.rank else zip(X.split(4), Y.split(4), strict=True), ranks)
    )
    assert "reuses its buffers" in str(second)
    assert isinstance(first, tg.UsageError)
    assert "rank 1 failed while fetching" in str(first)


def test_filled_by_weight_and_partial_windows_as_well():
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=None, window_weight=16))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    with pytest.raises(tg.UsageError, match="reuses its buffers"):
        next(pipe.windows(one_buffer()))
    with pytest.raises(tg.UsageError, match="micro-batch 1 into the memory of micro-batch 0"):
        gradient(itertools.islice(one_buffer(), 2), fetch="window")


def overlapping_and_written():
    """A buffer that grows; what was handed out is not written again."""
    buffer = torch.zeros(8, 3)
    buffer[:4] = X[:4]
    for index in range(4):
        buffer[4 + index] = X[4 + index]
        yield buffer[index : index + 5], Y[index : index + 5]


class Source:
    """What batches know of where they are from."""

    def __init__(self):
        self.count, self.seen = 0, {}

    def __iter__(self):
        for index in range(4):
            self.count += 1
            self.seen[index] = str(index)
            batch = Batch(X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4])
            batch.source = self
            yield batch


HARMLESS = {
    "batches that hold their source": Source,
    "one dict, never filled again": lambda: [{"x": X[:4], "y": Y[:4], "name": "one", "nothing": None}] * 4,
    "the same batch again": lambda: [(X[:4], Y[:4])] * 4,
    "repeated": lambda: itertools.repeat((X[:4], Y[:4]), 4),
    "slices of one tensor": lambda: zip(X.split(4), Y.split(4), strict=True),
    "overlapping slices": lambda: [(X[i : i + 4], Y[i : i + 4]) for i in range(4)],
    "expanded": lambda: [(X[:1].expand(4, 3), Y[:4])] * 4,
    "a ring as long as the window": lambda: one_buffer(4),
    "nan": lambda: [(torch.full((4, 3), torch.nan), Y[:4])] * 4,
    "interleaved slots": lambda: interleaved(),
    "a growing buffer": overlapping_and_written,
    "numpy, the same again": lambda: [{"x": X[:4], "more": [Y[:4]], "ids": np.arange(4)}] * 4,
    "empty": lambda: [{"x": X[:4], "more": [Y[:4]], "none": torch.empty(0)}] * 4,
    "inference tensors": lambda: inference(),
}


def interleaved():
    """Slots that lie between each other in memory."""
    ring = torch.zeros(3, 4, 4)
    for index in range(4):
        ring[:, index] = X[4 * index : 4 * index + 4].T
        yield ring[:, index].T, Y[4 * index : 4 * index + 4]


def inference():
    with torch.inference_mode():
        x = X[:4] * 2
    return [{"x": x.clone(), "more": [Y[:4]], "extra": x}] * 4


@pytest.mark.parametrize("loader", HARMLESS.values(), ids=HARMLESS.keys())
def test_memory_that_nobody_writes_to_may_be_shared(loader):
    assert len(gradient_of_any(loader())) == 1


def gradient_of_any(loader):
    """Without the guard, which minds NaN."""
    model, windows = linear(), []
    plan = tg.Plan(accumulate=tg.Accumulate(4, fetch="window"), guard=tg.Guard("propagate"))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan, weight=lambda batch: 4.0)
    for window in pipe.windows(loader):
        for batch in window:
            x, y = unpacked(batch)
            pipe.backward((model(x) - y).square().mean())
        windows.append(pipe.step())
    return windows


def test_pieces_of_one_batch_and_later_windows_may_share_memory():
    def whole():
        x, y = torch.empty(8, 3), torch.empty(8, 2)
        for index in range(2):
            x.copy_(X[8 * index : 8 * index + 8])
            y.copy_(Y[8 * index : 8 * index + 8])
            yield x, y

    assert len(gradient(whole(), source="split", weight=None)) == 2


@pytest.mark.parametrize("make", [torch.zeros, lambda n: np.zeros(n, np.float32)], ids=["torch", "numpy"])
@pytest.mark.parametrize("numel", [WHOLE, WHOLE + 1, 10 * WHOLE])
def test_large_batches_are_compared_by_a_sample(make, numel):
    waiting, buffer = WaitingBatches(), make(numel)
    for value in (1.0, 2.0):
        buffer[:] = value
        waiting.fetched({"x": buffer})
    with pytest.raises(tg.UsageError, match=r'batch\["x"\]'):
        waiting.check()
    assert len(_sample(buffer)) == (numel if numel <= WHOLE else SAMPLE)


def test_numbers_of_any_kind_have_a_digest():
    values = torch.arange(6.0).view(2, 3)
    complexes = torch.complex(values, -values)
    kinds = [values.bfloat16(), values.to(torch.int16), complexes, complexes.conj(), complexes.imag]
    for value in [*kinds, values.T, values[0, 0], values.numpy(), values.numpy()[::-1]]:
        assert digest(value) == digest(value)
        assert digest(value) != digest(value + value + 1)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_write_that_the_sample_misses_is_seen_by_torch_s_counter(is_transposed):
    waiting, buffer = WaitingBatches(), torch.zeros(300, 300)
    view = buffer.T[:, :290] if is_transposed else buffer
    waiting.fetched(view)
    waiting.fetched(view)
    waiting.check()
    buffer[7, 1] = 1.0
    with pytest.raises(tg.UsageError, match="micro-batch 1 into the memory of micro-batch 0"):
        waiting.check()


def test_a_thread_that_goes_on_writing_is_seen_when_the_batch_is_handed_out():
    buffers = [torch.zeros(4, 3), torch.ones(4, 3)]
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(2, fetch="window"))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    batches = iter(next(pipe.windows(buffers)))
    next(batches)
    buffers[1].numpy()[:] = 5.0
    with pytest.raises(tg.UsageError, match=r"micro-batch 1 .* has been written to since it was fetched"):
        next(batches)


def test_a_user_may_change_batches_before_and_while_they_run():
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(2, fetch="window"))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    for window in pipe.windows([X[:4].clone(), X[4:8].clone()]):
        for batch in window.batches:
            batch.mul_(2.0)
        for batch in window:
            pipe.backward(model(batch.add_(1.0)).square().mean())
        assert pipe.step().weight == 8
