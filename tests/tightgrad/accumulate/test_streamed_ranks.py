"""fetch="batch" on several ranks: every rank counts each window once, wherever it is."""

import gc

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.streamed import make
from support.training import batches, linear, loss_of, on_ranks, train
from support.watched import HasTwin, events_of_a_window, failing_at, watched


class TestRanks:
    def events_of(self, k, loader):
        collective = HasTwin()
        model, pipe = make(k=k, collective=collective)
        return events_of_a_window(collective, pipe, model, loader)

    def test_both_counts_are_under_way_while_a_forward_runs(self):
        first = ["begun", "forward", "waited", "backward"]
        assert self.events_of(3, batches(6)) == [
            *first,
            "forward",
            "backward",
            "begun",
            "forward",
            "waited",
            "backward",
        ]

    def test_one_count_where_a_window_is_one_batch(self):
        assert self.events_of(1, batches(6)) == ["begun", "forward", "waited", "backward"]

    def test_a_loop_that_breaks_leaves_nothing_under_way(self):
        collective = HasTwin()
        _, pipe = make(k=3, collective=collective)
        for window in pipe.windows(batches(6)):
            assert window.expected_weights == {"loss": 24.0}
            break
        gc.collect()
        assert collective.events == ["begun", "waited"]

    def test_abandoning_ranks_may_be_at_different_places(self):
        """One has run out of batches, one is in the middle, one before the last backward."""

        def body(collective):
            model, pipe = make(collective=collective)
            loader = batches(1 if collective.rank == 0 else 6, collective.rank)
            windows = pipe.windows(loader)
            window = next(windows)
            for position, batch in enumerate(window):
                if position == collective.rank:
                    break
                pipe.backward(loss_of(model, batch))
            pipe.abandon()
            consumed = pipe.state_dict()["num_consumed"]
            assert model.weight.grad is None
            return consumed, [record.weight for record in train(pipe, model, batches(3, collective.rank))]

        assert on_ranks(3, body) == [(1, [36.0]), (2, [36.0]), (3, [36.0])]

    def test_a_rank_without_batches_takes_part(self):
        def body(collective):
            model, pipe = make(collective=collective)
            records = train(pipe, model, batches(4 * collective.rank, collective.rank))
            return [(record.weight, record.micro_batches) for record in records], model.weight.detach().clone()

        (first, weights), (second, others) = on_ranks(2, body)
        assert first == [(12.0, 0), (4.0, 0)]
        assert second == [(12.0, 3), (4.0, 1)]
        assert torch.equal(weights, others)

    def test_layers_that_wait_for_a_rank_without_batches_are_refused(self):
        model = nn.Sequential(linear(), nn.SyncBatchNorm(2))
        with pytest.raises(tg.UnsupportedError, match="SyncBatchNorm"):
            make(model=model, collective=HasTwin())
        with pytest.warns(tg.TightGradWarning, match="BatchNorm in training mode"):
            make(model=model)
        with pytest.warns(tg.TightGradWarning, match="BatchNorm in training mode"):
            make("window", model=model, collective=HasTwin())

    def test_a_rank_counts_where_its_loader_ends(self):
        """Collectives of the user's own may come before step()."""

        def body(collective):
            collective = watched(collective)
            model, pipe = make(collective=collective)
            for window in pipe.windows(batches(3 - collective.rank, collective.rank)):
                for batch in window:
                    pipe.backward(loss_of(model, batch))
                collective.events.append("loop ended")
                pipe.step()
            return collective.events

        first, second = on_ranks(2, body)
        assert first[:5] == ["begun", "waited", "begun", "waited", "loop ended"]
        assert second[:5] == ["begun", "waited", "begun", "loop ended", "waited"]

    def test_abandoning_after_another_rank_failed_at_its_first_batch(self):
        """There is no second count then."""

        def body(collective, fails):
            collective = watched(collective)
            model, pipe = make(collective=collective)
            loader = batches(6, collective.rank)
            if fails:
                windows = pipe.windows(failing_at(0, []) if collective.rank == 0 else loader)
                if collective.rank == 0:
                    with pytest.raises(OSError, match="disk"):
                        next(windows)
                else:
                    next(windows)
                pipe.abandon()
                assert collective.events == ["begun", "waited"]
                assert pipe.state_dict()["num_consumed"] == 0
            train(pipe, model, loader)
            return model.weight.detach().clone()

        for weights in (*on_ranks(2, lambda c: body(c, True)), *on_ranks(2, lambda c: body(c, False))):
            assert torch.equal(weights, on_ranks(2, lambda c: body(c, False))[0])

    def test_a_rank_that_goes_on_hears_who_has_left(self):
        def body(collective, leaves):
            model, pipe = make(collective=collective)
            loader, error, consumed = batches(6, collective.rank), None, 0
            if leaves:
                windows = pipe.windows(loader)
                try:
                    for position, batch in enumerate(next(windows)):
                        if collective.rank == 1 and position == 1:
                            break
                        pipe.backward(loss_of(model, batch))
                except tg.UsageError as raised:
                    error = str(raised)
                pipe.abandon()
                consumed = pipe.state_dict()["num_consumed"]
                assert model.weight.grad is None
            records = train(pipe, model, loader)
            return error, consumed, [record.weight for record in records], model.weight.detach().clone()

        straight = on_ranks(2, lambda collective: body(collective, False))
        first, second = on_ranks(2, lambda collective: body(collective, True))
        assert first[0].startswith("rank 1 has left the window by abandon()")
        assert second[0] is None
        assert (first[1], second[1]) == (3, 2)
        for left, one in zip((first, second), straight, strict=True):
            assert left[2] == one[2]
            assert torch.equal(left[3], one[3])
