"""Real ranks whose count is under way while a forward runs: one fails to fetch, or leaves the loop."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import tightgrad as tg
from support.in_turn import in_turn
from support.ranks import run_ranks
from support.wrapping import ragged_batches, small_model, wrap
from tightgrad.collectives import TorchCollective

TOP = tg.codecs.TopK(0.1)
COMPRESS = {
    "plain": None,
    "ddp": None,
    "ddp after backward": tg.Compress(TOP, feedback=tg.ErrorFeedback(), overlap="none"),
    "ddp during backward": tg.Compress(TOP, feedback=tg.ErrorFeedback(), overlap="backward"),
    "fsdp2": None,
}
FETCHES = ("window", "batch")
WAITS = {  # before its first forward, in the first window and in the third
    "plain": (False, False),
    "ddp": (True, False),
    "ddp after backward": (False, False),
    "ddp during backward": (True, False),
    "fsdp2": (True, True),
}


class Training:
    def __init__(self, case, fetch, k=2):
        kind = case.split()[0]
        self.model = wrap(small_model(), kind)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        collective = TorchCollective() if kind == "plain" else None
        plan = tg.Plan(accumulate=tg.Accumulate(k, fetch=fetch), compress=COMPRESS[case])
        self.pipe = tg.attach(self.model, optimizer, plan, collective=collective)
        self.waits = []

    def run(self, loader):
        for window in self.pipe.windows(loader):
            self.waits.append(self.pipe.adapter.waits_in_forward)
            for inputs, labels in window:
                self.pipe.backward(nn.functional.cross_entropy(self.model(inputs), labels))
            self.pipe.step()

    def weights(self):
        return [p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in self.model.parameters()]


def equal(first, second):
    return all(map(torch.equal, first, second))


def batches():
    sizes = (8, 4, 6, 8, 2, 3, 5, 4) if dist.get_rank() else (4, 4, 5, 6, 7, 3, 2, 1)
    return ragged_batches(0, sizes)


def failing(loader, position):
    yield from loader[:position]
    raise OSError("the disk is gone")


def fail_and_go_on(case, fetch, position):
    straight = Training(case, fetch)
    straight.run(batches())
    training, error = Training(case, fetch), None
    try:
        training.run(failing(batches(), position) if dist.get_rank() == 1 else batches())
    except (OSError, tg.UsageError) as raised:
        error = str(raised)
    training.pipe.abandon()
    consumed = training.pipe.state_dict()["num_consumed"]
    training.run(batches()[consumed:])
    return error, consumed, straight.waits, equal(training.weights(), straight.weights())


@pytest.mark.parametrize(("case", "fetch", "position"), in_turn(COMPRESS, FETCHES, [4, 5]))
def test_a_window_that_one_rank_failed_to_fetch_is_none_on_all(case, fetch, position):
    (first, *found), (second, *others) = run_ranks(2, fail_and_go_on, case, fetch, position)
    assert first.startswith("rank 1 failed while fetching a window")
    assert second == "the disk is gone"
    for consumed, waits, is_equal in (found, others):
        assert consumed == 4
        assert is_equal
        assert (waits[0], waits[2]) == WAITS[case]


def end_or_fail_and_go_on(case, k, ends):
    """Rank 1's loader fails at the first batch of the third window, where rank 0's may end."""
    straight = Training(case, "batch", k)
    straight.run(batches())
    training, error = Training(case, "batch", k), None
    healthy = batches()[: 2 * k] if ends else batches()
    try:
        training.run(failing(batches(), 2 * k) if dist.get_rank() == 1 else healthy)
    except (OSError, tg.UsageError) as raised:
        error = str(raised)
    training.pipe.abandon()
    consumed = training.pipe.state_dict()["num_consumed"]
    training.run(batches()[consumed:])
    return error, consumed, equal(training.weights(), straight.weights())


@pytest.mark.parametrize(("case", "k", "ends"), in_turn(COMPRESS, [1, 2], [False, True]))
def test_all_ranks_hear_of_a_window_whose_first_batch_failed(case, k, ends):
    """With windows of one micro-batch, the count of first batches is the only one."""
    first, second = run_ranks(2, end_or_fail_and_go_on, case, k, ends)
    assert first[0].startswith("rank 1 failed while fetching a window")
    assert second[0] == "the disk is gone"
    assert first[1:] == second[1:] == (2 * k, True)


def leave_and_go_on(case, fetch):
    straight = Training(case, fetch)
    straight.run(batches())
    training = Training(case, fetch)
    training.run(batches()[:4])
    for _ in training.pipe.windows(batches()[4:]):
        break
    training.pipe.abandon()
    training.run(batches()[4:])
    return equal(training.weights(), straight.weights())


@pytest.mark.parametrize(("case", "fetch"), in_turn(COMPRESS, FETCHES))
def test_a_window_that_all_ranks_leave(case, fetch):
    assert all(run_ranks(2, leave_and_go_on, case, fetch))


def leave_before_the_last_backward(case, fetch):
    straight = Training(case, fetch)
    straight.run(batches())
    training = Training(case, fetch)
    training.run(batches()[:4])
    windows = training.pipe.windows(batches()[4:])
    for position, (inputs, labels) in enumerate(next(windows)):
        loss = nn.functional.cross_entropy(training.model(inputs), labels)
        if position == 1:
            break
        training.pipe.backward(loss)
    training.pipe.abandon()
    consumed = training.pipe.state_dict()["num_consumed"]
    training.run(batches()[4:])
    return consumed, equal(training.weights(), straight.weights())


@pytest.mark.parametrize(("case", "fetch"), in_turn(COMPRESS, FETCHES))
def test_a_forward_without_backward_leaves_nothing(case, fetch):
    """DDP would reduce the next backward in its place, although that is held by no_sync."""
    for consumed, is_equal in run_ranks(2, leave_before_the_last_backward, case, fetch):
        assert consumed == 6
        assert is_equal


def fail_alone_and_go_on(case, fetch):
    """Rank 1's own code fails in a window's first micro-batch; the others hear of it where they need it."""
    straight = Training(case, fetch)
    straight.run(batches())
    training, error = Training(case, fetch), None
    training.run(batches()[:4])
    windows = training.pipe.windows(batches()[4:])
    try:
        for inputs, labels in next(windows):
            if dist.get_rank() == 1:
                break
            training.pipe.backward(nn.functional.cross_entropy(training.model(inputs), labels))
        else:
            training.pipe.step()
    except tg.TightGradError as raised:
        error = str(raised)
    training.pipe.abandon()
    training.run(batches()[4:])
    return error, equal(training.weights(), straight.weights())


@pytest.mark.parametrize(("case", "fetch"), [("ddp during backward", "window"), ("ddp after backward", "batch")])
def test_ranks_that_leave_by_different_errors_go_on_together(case, fetch):
    """DDP's buckets are agreed on anew by all ranks, or by none."""
    (error, first), (none, second) = run_ranks(2, fail_alone_and_go_on, case, fetch)
    assert error is not None
    assert none is None
    assert first
    assert second


def save_after_a_failure(case, folder):
    """Rank 1 has no second batch of the third window, which the others do not know yet."""
    training = Training(case, "batch")
    training.run(batches()[:2])
    training.pipe.save(folder)
    loader = batches()[2:]
    windows = training.pipe.windows(failing(loader, 1) if dist.get_rank() == 1 else loader)
    error = None
    try:
        for position, (inputs, labels) in enumerate(next(windows)):
            if position == 1:
                training.pipe.save(folder)
            training.pipe.backward(nn.functional.cross_entropy(training.model(inputs), labels))
    except (OSError, tg.CheckpointError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    training.pipe.abandon()
    return error, training.pipe.load(folder)


@pytest.mark.parametrize("case", ["ddp", "ddp during backward", "fsdp2"])
def test_a_window_in_which_a_loader_failed_is_not_saved(case, tmp_path):
    first, second = run_ranks(2, save_after_a_failure, case, str(tmp_path))
    assert first[0].startswith("CheckpointError: ")
    assert "rank 1" in first[0]
    assert second[0] == "OSError: the disk is gone"
    assert first[1] == second[1] == 2


NOTHING = {
    "ddp during backward": COMPRESS["ddp during backward"],
    "fsdp2": tg.Compress(TOP, tg.reducers.SparseTwoShot(), tg.ErrorFeedback()),
}


def without_weight(case):
    """A window of padding only, which is known at its end, when gradients have been handed over."""
    plan = tg.Plan(accumulate=tg.Accumulate(2, fetch="batch"), compress=NOTHING[case])
    model = wrap(small_model(), case.split()[0])
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, weight=lambda batch: batch[2])
    loader = [(*batch, weight) for batch, weight in zip(batches(), (1, 2, 0, 0, 1, 1, 0, 3), strict=True)]
    seen = []
    for window in pipe.windows(loader):
        for inputs, labels, _ in window:
            pipe.backward(nn.functional.cross_entropy(model(inputs), labels))
        record = pipe.step()
        residuals = {name: tensor.clone() for name, tensor in pipe.state_dict()["slots"]["residual"].items()}
        seen.append((record.skip_reason, record.weight, residuals))
    return seen


@pytest.mark.parametrize("case", NOTHING)
def test_a_window_without_weight_leaves_residuals_alone(case):
    for seen in run_ranks(2, without_weight, case):
        assert [(reason, weight) for reason, weight, _ in seen] == [
            (None, 6.0),
            ("zero_weight", 0.0),
            (None, 4.0),
            (None, 6.0),
        ]
        before, after = seen[0][2], seen[1][2]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert any(not torch.equal(after[name], seen[2][2][name]) for name in after)
