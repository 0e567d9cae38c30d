"""What one rank of several alone raises or does differently, under wrappers that sum by themselves."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import tightgrad as tg
from support.in_turn import in_turn
from support.ranks import run_ranks
from support.waiting import patience
from support.wrapping import full, small_model, wrap

K, BAD = 2, 3
COMPRESS = tg.Compress(tg.codecs.Cast("float32"))
DURING = tg.Compress(tg.codecs.Cast("float32"), overlap="backward")
WRAPPED = {
    "ddp": ("ddp", None),
    "ddp compared": ("ddp", None),
    "ddp after backward": ("ddp", COMPRESS),
    "ddp during backward": ("ddp", DURING),
    "fsdp2": ("fsdp2", None),
    "fsdp2 compressed": ("fsdp2", COMPRESS),
}


class BrokenError(RuntimeError):
    """What one rank raises; no error of the library's own."""


class Writer(tg.records.RecordWriter):
    def __init__(self):
        self.is_broken = False

    def write(self, record):
        if self.is_broken:
            self.is_broken = False
            raise BrokenError("the disk is full")


class Loop:
    """A model, its pipeline, and windows of which rank 1 can do one differently."""

    def __init__(self, wrapped, edits=True):
        kind, compress = WRAPPED[wrapped]
        net = small_model()
        net.append(nn.Dropout(0.0))
        self.model, self.writer, self.breaks_edit = wrap(net, kind), Writer(), False
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        guard = tg.Guard(compare_every=1) if wrapped == "ddp compared" else None
        plan = tg.Plan(tg.Accumulate(K), clip=tg.clip.GlobalNorm(1.0), compress=compress, guard=guard)
        self.pipe = tg.attach(
            self.model, optimizer, plan, before_clip=self.edit if edits else None, records=[self.writer]
        )

    def edit(self, grads):
        if self.breaks_edit:
            self.breaks_edit = False
            raise BrokenError("no such parameter")

    def window(self, before_step=lambda: None, before=lambda position: None):
        try:
            for window in self.pipe.windows(torch.randn(K, 4, 20)):
                for position, batch in enumerate(window):
                    before(position)
                    self.pipe.backward(self.model(batch).square().mean())
                before_step()
                self.pipe.step()
                break  # else the others would ask for another window, which this rank may not
        except (BrokenError, tg.TightGradError) as error:
            self.pipe.abandon()
            return f"{type(error).__name__}: {error}"
        return ""

    def weights(self):
        return [full(parameter) for parameter in self.model.parameters()]


def fails(wrapped, place):
    loop, is_bad = Loop(wrapped), dist.get_rank() == 1
    told = [loop.window() for _ in range(BAD)]
    loop.breaks_edit = is_bad and place == "edit"
    loop.writer.is_broken = is_bad and place == "writer"

    def broken():
        raise BrokenError("no room for a log")

    told += [loop.window(broken if is_bad and place == "before step" else lambda: None)]
    told += [loop.window() for _ in range(2)]
    return told, loop.weights(), loop.pipe.state.step


@pytest.mark.parametrize(("wrapped", "place"), in_turn(WRAPPED, ["edit", "before step", "writer"]))
def test_after_the_last_backward_others_are_told_and_all_go_on(wrapped, place):
    first, second = run_ranks(2, fails, wrapped, place, timeout_seconds=patience(30))
    assert all(map(torch.equal, first[1], second[1]))
    for told, _, steps in (first, second):
        expected = [BAD] if told is second[0] or place != "writer" else []
        assert [number for number, text in enumerate(told) if text] == expected
        assert steps == BAD + 2 + (place == "writer")
    assert second[0][BAD].startswith("BrokenError")
    if place != "writer":
        assert "rank 1" in first[0][BAD]
        assert "BrokenError" in first[0][BAD] or wrapped == "ddp during backward"


BEFORE = {"ddp after backward": 1, "ddp during backward": 2, "fsdp2": 1, "fsdp2 compressed": 1}
"""Windows that go well: in the second one DDP talks in its first forward, to build its buckets anew."""


def fails_early(wrapped, position):
    """Before the forward of one micro-batch, under FSDP2 in the second window: until then forwards are compared."""
    loop = Loop(wrapped)

    def broken(now):
        if now == position and dist.get_rank() == 1:
            raise BrokenError("a strange sample")

    told = [*(loop.window() for _ in range(BEFORE[wrapped])), loop.window(before=broken)]
    told += [loop.window() for _ in range(2)]
    return told, loop.weights(), loop.pipe.state.step


@pytest.mark.parametrize(("wrapped", "position"), in_turn(BEFORE, range(K)))
def test_in_a_forward_others_are_told_where_they_wait(wrapped, position):
    first, second = run_ranks(2, fails_early, wrapped, position, timeout_seconds=patience(30))
    assert all(map(torch.equal, first[1], second[1]))
    number = BEFORE[wrapped]
    assert "rank 1" in first[0].pop(number)
    assert second[0].pop(number) == "BrokenError: a strange sample"
    assert not any((*first[0], *second[0]))
    assert first[2] == second[2] == number + 2


def parts():
    """DDP that averages by itself asks nobody at its step: what one rank leaves out there is told a window later."""
    loop = Loop("ddp", edits=False)

    def broken():
        if dist.get_rank() == 1:
            raise BrokenError("no room for a log")

    return [loop.window(), loop.window(broken), loop.window(), loop.window()]


def test_a_step_that_one_rank_left_out_is_told_before_the_next():
    first, second = run_ranks(2, parts, timeout_seconds=patience(30))
    assert first[:2] == ["", ""]
    assert second[1] == "BrokenError: no room for a log"
    for told in (*first[2:], *second[2:]):
        assert "have applied different numbers of steps (modulo 4096: 2 on rank 0, 1 on rank 1)" in told


def left_in_eval(wrapped):
    loop, told = Loop(wrapped), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.TightGradWarning)
        for number in range(5):
            if number == 2 and dist.get_rank() == 1:
                list(loop.model.modules())[-1].eval()
            told.append(loop.window())
    loop.model.train()
    return told, [loop.window() for _ in range(3)]


@pytest.mark.parametrize("wrapped", ["ddp", "fsdp2"])
def test_a_mode_that_differs_over_ranks_is_told_a_window_later(wrapped):
    for rank, (told, then) in enumerate(run_ranks(2, left_in_eval, wrapped, timeout_seconds=patience(30))):
        assert told[:3] == ["", "", ""]
        assert "rank 1 had modules in another mode (train() or eval()) than rank 0" in told[3]
        assert ("on this rank (1): '6'" if rank else "on this rank (0): no module") in told[3]
        assert then[1:] == ["", ""]


def modes_that_are_right(wrapped):
    """Evaluation on one rank alone; a part that is never trained in training mode."""
    loop = Loop(wrapped)
    list(loop.model.modules())[-1].eval()
    told = []
    for _ in range(4):
        if dist.get_rank() == 0:
            loop.model.eval()
            getattr(loop.model, "module", loop.model)(torch.ones(2, 20)) if wrapped == "ddp" else None

        def train(position):
            loop.model.train()
            list(loop.model.modules())[-1].eval()

        told.append(loop.window(before=train))
    return told


@pytest.mark.parametrize("wrapped", ["ddp", "fsdp2"])
def test_modes_that_are_alike_at_the_backward_are_left_alone(wrapped):
    assert run_ranks(2, modes_that_are_right, wrapped, timeout_seconds=patience(30)) == [[""] * 4] * 2


def frozen_on_one(wrapped):
    loop = Loop(wrapped)
    told = [loop.window() for _ in range(3)]
    before = loop.weights()
    if dist.get_rank() == 1:
        next(loop.model.parameters()).requires_grad_(False)
    told += [loop.window() for _ in range(2)]
    kept = all(map(torch.equal, before, loop.weights())) if wrapped != "fsdp2" else True
    next(loop.model.parameters()).requires_grad_(True)
    return told, kept, loop.window()


@pytest.mark.parametrize("wrapped", ["ddp", "ddp after backward"])
def test_a_parameter_that_one_rank_alone_freezes(wrapped):
    (first, kept, after), (second, _, then) = run_ranks(2, frozen_on_one, wrapped, timeout_seconds=patience(30))
    assert first[:3] == second[:3] == [""] * 3
    assert any(
        "rank 1 has other frozen parameters" in text and "Frozen on this rank (0): no parameter" in text
        for text in first[3:]
    )
    assert all(second[3:]) or wrapped != "ddp"
    assert kept or wrapped != "ddp"
    assert after == then == ""
