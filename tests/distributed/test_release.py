"""After `close()` the wrapper does what it does without a pipeline."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.in_turn import in_turn
from support.ranks import run_ranks
from support.waiting import patience
from support.wrapping import full, ragged_batches, small_model, wrap
from tightgrad.collectives import TorchCollective

SENT = tg.codecs.Cast("float32")
MODES = {
    "ddp": ("ddp", {}, None),
    "explicit": ("ddp", {"compress": tg.Compress(SENT)}, None),
    "hook": ("ddp", {"compress": tg.Compress(SENT, overlap="backward")}, None),
    "fsdp2 last": ("fsdp2", {}, "last"),
    "fsdp2 every": ("fsdp2", {}, "every"),
    "fsdp2 compress": ("fsdp2", {"compress": tg.Compress(SENT)}, None),
}


class Counting(nn.Sequential):
    """Has a buffer that tells which rank's it is."""

    def __init__(self):
        super().__init__(*small_model())
        self.register_buffer("rank", torch.tensor(float(dist.get_rank())))


def plain_step(model, batch):
    model.zero_grad()
    inputs, labels = batch
    F.cross_entropy(model(inputs), labels).backward()
    return [full(parameter.grad) for parameter in model.parameters()]


def trained_by_hand(mode, leaves):
    """Gradients of a plain loop after a pipeline was closed, and of one that never had any."""
    kind, parts, sync = MODES[mode]
    rank = dist.get_rank()
    batches = ragged_batches(rank)[:3]
    model = wrap(Counting(), kind)
    plan = tg.Plan(accumulate=tg.Accumulate(2, sync=sync or "auto"), **parts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pipe = tg.attach(model, optimizer, plan)
    for window in pipe.windows(ragged_batches(rank)[:4]):
        for inputs, labels in window:
            pipe.backward(F.cross_entropy(model(inputs), labels))
            if leaves:
                break
        if leaves:
            pipe.abandon()
            break
        pipe.step()
    pipe.close()
    untouched = wrap(Counting(), kind)
    pairs = [(plain_step(model, batch), plain_step(untouched, batch)) for batch in batches]
    optimizer.step()
    again = tg.attach(model, optimizer, plan)
    for window in again.windows(batches):
        for inputs, labels in window:
            again.backward(F.cross_entropy(model(inputs), labels))
        assert not again.step().skipped
    buffers = [float(next(wrapped.buffers())) for wrapped in (model, untouched)]
    return pairs, buffers


@pytest.mark.parametrize(("mode", "leaves"), in_turn(MODES, [False, True]))
def test_a_closed_pipeline_leaves_a_plain_wrapper(mode, leaves):
    for pairs, buffers in run_ranks(2, trained_by_hand, mode, leaves, timeout_seconds=patience(200)):
        for ours, plain in pairs:
            for own, other in zip(ours, plain, strict=True):
                torch.testing.assert_close(own, other)
        if not mode.startswith("fsdp2"):
            assert buffers == [0.0, 0.0]


def superseded_then_closed():
    """The first pipeline is closed when another one already reduces in backward."""
    model = DistributedDataParallel(small_model())
    plan = tg.Plan(compress=tg.Compress(SENT, overlap="backward"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    old = tg.attach(model, optimizer, plan)
    new = tg.attach(model, optimizer, plan, collective=TorchCollective())
    old.close()
    records = []
    for window in new.windows(ragged_batches(dist.get_rank())[:2]):
        for inputs, labels in window:
            new.backward(F.cross_entropy(model(inputs), labels))
        records.append(new.step())
    return [record.grad_norm for record in records], [record.wire_bytes > 0 for record in records]


def test_closing_what_was_taken_over_takes_nothing_from_the_new_one():
    one, other = run_ranks(2, superseded_then_closed, timeout_seconds=patience(200))
    assert one == other
    assert all(one[1])
