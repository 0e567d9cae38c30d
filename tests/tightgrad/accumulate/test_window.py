"""Windows: counted before the first backward, entered once, finished by one step."""

import gc

import pytest
import torch

import tightgrad as tg
from support.training import batches, linear, loss_of, on_ranks, train


def make(plan=None, **arguments):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, tg.attach(model, optimizer, plan or tg.Plan(accumulate=tg.Accumulate(2)), **arguments)


WHOLE = tg.Plan(accumulate=tg.Accumulate(3, fetch="window"))


@pytest.mark.parametrize("plan", [tg.Plan(), tg.Plan(accumulate=tg.Accumulate(2))], ids=["empty", "accumulate"])
class TestOrderOfCalls:
    def test_backward_needs_a_window(self, plan):
        model, pipe = make(plan)
        with pytest.raises(tg.UsageError, match=r"backward\(\) needs a window"):
            pipe.backward(loss_of(model, batches(1)[0]))

    def test_backward_needs_a_batch(self, plan):
        model, pipe = make(plan)
        next(pipe.windows(batches(2)))
        with pytest.raises(tg.UsageError, match="before the window's first batch"):
            pipe.backward(loss_of(model, batches(1)[0]))

    def test_backward_comes_once(self, plan):
        model, pipe = make(plan)
        batch = next(iter(next(pipe.windows(batches(2)))))
        pipe.backward(loss_of(model, batch))
        with pytest.raises(tg.UsageError, match="ran twice for micro-batch 0"):
            pipe.backward(loss_of(model, batch))

    def test_step_needs_every_backward(self, plan):
        _, pipe = make(plan)
        for _ in next(pipe.windows(batches(2))):
            pass
        with pytest.raises(tg.UsageError, match=r"step\(\) came after 0 of the window's"):
            pipe.step()

    def test_step_needs_a_window(self, plan):
        model, pipe = make(plan)
        with pytest.raises(tg.UsageError, match=r"step\(\) needs a window"):
            pipe.step()
        train(pipe, model, batches(2))
        with pytest.raises(tg.UsageError, match=r"step\(\) needs a window"):
            pipe.step()

    def test_the_next_window_needs_a_step(self, plan):
        model, pipe = make(plan)
        windows = pipe.windows(batches(4))
        for batch in next(windows):
            pipe.backward(loss_of(model, batch))
        with pytest.raises(tg.UsageError, match=r"previous window has no step\(\)"):
            next(windows)

    def test_a_window_is_iterated_once(self, plan):
        _, pipe = make(plan)
        window = next(pipe.windows(batches(2)))
        list(window)
        with pytest.raises(tg.UsageError, match="iterated once"):
            list(window)

    def test_windows_are_asked_for_in_each_epoch(self, plan):
        model, pipe = make(plan)
        windows = pipe.windows(batches(4))
        for index, window in enumerate(windows):  # left, and taken up again
            for batch in window:
                pipe.backward(loss_of(model, batch))
            pipe.step()
            if index == 0:
                break
        for window in windows:
            for batch in window:
                pipe.backward(loss_of(model, batch))
            pipe.step()
        with pytest.raises(tg.UsageError, match=r"come to their end.* pipe.windows\(loader\) anew in each epoch"):
            list(windows)

    @pytest.mark.parametrize("shape", [(2,), (0,), (1, 3)])
    def test_the_loss_is_a_scalar(self, plan, shape):
        model, pipe = make(plan)
        next(iter(next(pipe.windows(batches(2)))))
        with pytest.raises(tg.UsageError, match=r"shape .*reduce it to a scalar"):
            pipe.backward(model.weight.sum().expand(shape))


def test_a_backward_in_the_middle_is_missed():
    model, pipe = make()
    first, second = next(pipe.windows(batches(2)))
    assert first.shape == second.shape
    with pytest.raises(tg.UsageError, match="not called for micro-batch 0 of 2"):
        pipe.backward(loss_of(model, second))


def test_all_batches_are_weighed_before_the_first_is_given_out():
    seen = []
    _, pipe = make(WHOLE, weight=lambda batch: seen.append(batch) or len(batch))
    window = next(pipe.windows(batches(5)))
    assert len(seen) == len(window) == 3
    assert window.total_weight == 12.0


def test_a_loader_is_read_window_by_window():
    taken = []

    def loader():
        for index, batch in enumerate(batches(6)):
            taken.append(index)
            yield batch

    model, pipe = make(WHOLE)
    windows = pipe.windows(loader())
    next(windows)
    assert taken == [0, 1, 2]
    del windows
    gc.collect()
    assert model.weight.grad is None


BAD = {"negative": -1.0, "nan": float("nan"), "inf": float("inf"), "no number": "many", "none": None}


@pytest.mark.parametrize("weight", BAD.values(), ids=BAD.keys())
def test_a_bad_weight_on_one_rank_stops_every_rank(weight):
    def body(collective):
        model, pipe = make(weight=lambda batch: weight if collective.rank == 1 else 4.0, collective=collective)
        return train(pipe, model, batches(2))

    first, second, third = on_ranks(3, body)
    assert isinstance(second, tg.ConfigError | ValueError | TypeError)
    for other in (first, third):
        assert isinstance(other, tg.UsageError)
        assert "rank 1 failed while fetching a window" in str(other)


def failing_at(position):
    if position < 0:
        raise OSError("the disk is gone")
    yield from batches(position)
    raise OSError("the disk is gone")


class FailsToStart:
    def __iter__(self):
        raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "loader", [lambda: failing_at(0), lambda: failing_at(3), FailsToStart], ids=["at_once", "later", "at_its_start"]
)
def test_a_loader_that_fails_on_one_rank_stops_every_rank(loader):
    def body(collective):
        model, pipe = make(collective=collective)
        return train(pipe, model, loader() if collective.rank == 0 else batches(6))

    first, second = on_ranks(2, body)
    assert isinstance(first, OSError)
    assert isinstance(second, tg.UsageError)
    assert "rank 0" in str(second)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(5, 2), 5),
        ({"id": "a", "scale": torch.tensor(2.0), "x": torch.zeros(3)}, 3),
        ((["text"], {"x": torch.zeros(7, 1)}), 7),
        ([torch.zeros(0, 4)], 0),
    ],
)
def test_samples_are_counted_by_default(batch, samples):
    _, pipe = make(WHOLE)
    assert next(pipe.windows([batch])).total_weight == samples


@pytest.mark.parametrize("batch", ["text", 3, {"x": [1, 2]}, torch.tensor(1.0), ()])
def test_a_batch_that_cannot_be_counted_needs_a_weight(batch):
    _, pipe = make()
    with pytest.raises(tg.ConfigError, match=r"pass attach\(\.\.\., weight="):
        next(pipe.windows([batch]))
    _, pipe = make(WHOLE, weight=lambda batch: 2.5)
    assert next(pipe.windows([batch])).total_weight == 2.5


def test_a_loader_without_batches_makes_no_windows():
    for plan in (tg.Plan(), tg.Plan(accumulate=tg.Accumulate(2))):
        model, pipe = make(plan)
        assert train(pipe, model, []) == []


def test_gradients_from_before_do_not_leak_into_a_window():
    model, pipe = make()
    loss_of(model, batches(1)[0] * 1000).backward()
    (first,) = train(pipe, model, batches(2))
    fresh_model, fresh = make()
    (expected,) = train(fresh, fresh_model, batches(2))
    assert first.grad_norm == expected.grad_norm
    assert torch.equal(model.weight, fresh_model.weight)


@pytest.mark.parametrize(
    ("make_settings", "words"),
    [
        (lambda: tg.Accumulate(0), "micro_batches=0 must be at least 1"),
        (lambda: tg.Accumulate(2.0), "micro_batches=2.0 must be an integer"),
        (lambda: tg.Accumulate("2"), "micro_batches='2' must be an integer"),
        (lambda: tg.Accumulate(loss_reduction="none"), "loss_reduction='none'.*'mean', 'sum'"),
        (lambda: tg.Accumulate(None), "give exactly one"),
        (lambda: tg.Accumulate(2, window_weight=3), "give exactly one"),
        (lambda: tg.Accumulate(losses="ab"), "losses='ab' must be a tuple"),
        (lambda: tg.Accumulate(losses=3), "losses=3 must be a tuple"),
        (lambda: tg.Accumulate(losses=("a", "a")), "different names"),
        (lambda: tg.Accumulate((1, 2)), r"schedule \(1, 2\) must be a tuple of"),
        (lambda: tg.Accumulate(((5, 2),)), "start at step 0"),
        (lambda: tg.Accumulate(((0, 2), (0, 3))), "go up"),
    ],
)
def test_settings_out_of_bounds(make_settings, words):
    with pytest.raises(tg.ConfigError, match=words):
        make_settings()
