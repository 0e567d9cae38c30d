"""fetch="batch": one micro-batch at a time, with the gradient of a window that is counted first."""

import gc
import weakref

import pytest
import torch

import tightgrad as tg
from support.streamed import make, ragged
from support.training import batches, linear, loss_of, train
from support.watched import HasTwin, failing_at
from tightgrad.integrations.external_loop import with_micro_batches
from tightgrad.scaling import NoiseScale


class Scaled:
    """Counts how often a pipeline's gradients are multiplied."""

    def __init__(self, pipe):
        self.factors = []
        inner = pipe.adapter.scale_accumulated_

        def scale(factor):
            self.factors.append(factor)
            inner(factor)

        pipe.adapter.scale_accumulated_ = scale


class TestMemory:
    @pytest.mark.parametrize(("fetch", "most"), [("batch", 1), ("window", 4)])
    def test_batches_that_are_alive_in_a_backward(self, fetch, most):
        model, pipe = make(fetch, k=4)
        alive = []

        def loader():
            for _ in range(8):
                batch = torch.ones(4, 3)
                alive.append(weakref.ref(batch))
                yield batch
                del batch

        found = []
        for window in pipe.windows(loader()):
            for batch in window:
                loss = loss_of(model, batch)
                gc.collect()
                found.append(sum(ref() is not None for ref in alive))
                pipe.backward(loss)
            pipe.step()
        assert max(found[1:]) == most

    def test_the_next_batch_is_fetched_when_its_turn_comes(self):
        events = []
        model, pipe = make(k=2)

        def loader():
            for index, batch in enumerate(batches(5)):
                events.append(index)
                yield batch

        for window in pipe.windows(loader()):
            events.append("window")
            for batch in window:
                pipe.backward(loss_of(model, batch))
                events.append("backward")
            pipe.step()
        first = [0, "window", "backward", 1, "backward"]
        second = [2, "window", "backward", 3, "backward"]
        assert events == [*first, *second, 4, "window", "backward"]


class TestGradient:
    @pytest.mark.parametrize("k", [1, 2, 3, 4])
    def test_bitwise_that_of_a_counted_window_where_batches_weigh_the_same(self, k):
        trained = []
        for fetch in ("batch", "window"):
            model, pipe = make(fetch, k)
            scaled = Scaled(pipe)
            records = train(pipe, model, batches(4 * k))
            assert scaled.factors == []
            trained.append((model.weight.detach(), [(r.weight, r.micro_batches, r.loss) for r in records]))
        assert torch.equal(trained[0][0], trained[1][0])
        assert trained[0][1] == trained[1][1]

    @pytest.mark.parametrize("num", [4, 6, 7, 8])
    def test_close_to_it_where_they_do_not(self, num):
        (model, pipe), (other, counted) = make(), make("window")
        records, others = train(pipe, model, ragged(num)), train(counted, other, ragged(num))
        torch.testing.assert_close(model.weight, other.weight, rtol=1e-6, atol=1e-7)
        assert [(r.weight, r.micro_batches, r.grad_norm) for r in records] == [
            (r.weight, r.micro_batches, pytest.approx(r.grad_norm, rel=1e-6)) for r in others
        ]

    def test_gradients_are_multiplied_once_a_window(self):
        model, pipe = make()
        scaled = Scaled(pipe)
        train(pipe, model, ragged(6))
        assert scaled.factors == [12 / 13, 15 / 14]

    def test_a_loader_that_ends_in_a_window(self):
        model, pipe = make()
        scaled = Scaled(pipe)
        records = train(pipe, model, batches(5))
        assert scaled.factors == [12 / 8]
        assert [(record.weight, record.micro_batches) for record in records] == [(12.0, 3), (8.0, 2)]

    def test_first_batches_without_weight(self):
        weights = iter([0.0, 0.0, 5.0, 0.0, 1.0, 1.0])
        model, pipe = make(weight=lambda batch: next(weights))
        others = iter([0.0, 0.0, 5.0, 0.0, 1.0, 1.0])
        other, counted = make("window", weight=lambda batch: next(others))
        train(pipe, model, ragged(6))
        train(counted, other, ragged(6))
        torch.testing.assert_close(model.weight, other.weight, rtol=1e-6, atol=1e-7)

    def test_a_window_without_weight_is_skipped(self):
        weights = iter([0.0] * 3 + [1.0] * 3)
        model, pipe = make(weight=lambda batch: next(weights))
        before = model.weight.detach().clone()
        windows = pipe.windows(ragged(6))
        for batch in next(windows):
            pipe.backward(loss_of(model, batch))
        record = pipe.step()
        assert (record.skip_reason, record.weight) == ("zero_weight", 0.0)
        assert torch.equal(model.weight, before)
        for batch in next(windows):
            pipe.backward(loss_of(model, batch))
        assert pipe.step().skip_reason is None
        assert not torch.equal(model.weight, before)

    @pytest.mark.parametrize("scaler", [None, tg.LossScale(initial=1024.0)])
    def test_low_precision_sums_follow_as_well(self, scaler):
        trained = []
        for fetch in ("batch", "window"):
            model, pipe = make(fetch, model=linear().bfloat16(), loss_scale=scaler)
            train(pipe, model, [batch.bfloat16() for batch in ragged(7)])
            trained.append(model.weight.detach().float())
        torch.testing.assert_close(*trained, rtol=1e-2, atol=1e-3)
        assert not torch.equal(trained[0], linear().bfloat16().weight.float())

    def test_sums_of_losses_need_no_other_loss_factor(self):
        trained = []
        for fetch in ("batch", "window"):
            model = linear()
            plan = tg.Plan(accumulate=tg.Accumulate(3, fetch=fetch, loss_reduction="sum"))
            pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
            for window in pipe.windows(ragged(7)):
                for batch in window:
                    pipe.backward((model(batch) - batch[:, :2]).square().mean(1).sum())
                pipe.step()
            trained.append(model.weight.detach())
        torch.testing.assert_close(*trained, rtol=1e-6, atol=1e-7)


class TestFailure:
    @pytest.mark.parametrize("position", [0, 1, 2, 3, 4])
    def test_a_loader_that_fails(self, position):
        model, pipe = make()
        with pytest.raises(OSError, match="the disk is gone"):
            train(pipe, model, failing_at(position, ragged()))
        pipe.abandon()
        consumed = pipe.state_dict()["num_consumed"]
        assert consumed == position // 3 * 3
        assert model.weight.grad is None
        train(pipe, model, ragged()[consumed:])
        straight, other = make()
        train(other, straight, ragged())
        assert torch.equal(model.weight, straight.weight)

    def test_windows_after_a_failure_do_not_go_on_without_the_loader(self):
        model, pipe = make()
        windows = pipe.windows(failing_at(4, ragged()))
        for batch in next(windows):
            pipe.backward(loss_of(model, batch))
        pipe.step()
        with pytest.raises(OSError, match="the disk is gone"):
            pipe.run(next(windows), lambda batch: loss_of(model, batch))
        pipe.abandon()
        with pytest.raises(tg.UsageError, match=r"the loader failed before \(the disk is gone\)"):
            next(windows)
        assert [record.weight for record in train(pipe, model, ragged()[3:])] == [14.0, 9.0]

    def test_no_checkpoint_of_a_window_in_which_the_loader_failed(self, tmp_path):
        model, pipe = make()
        pipe.save(tmp_path)
        with pytest.raises(OSError, match="the disk is gone"):
            train(pipe, model, failing_at(2, ragged()))
        with pytest.raises(OSError, match="the disk is gone"):
            pipe.save(tmp_path)
        pipe.abandon()
        assert pipe.load(tmp_path) == 0

    def test_a_loader_that_fails_while_a_window_is_taken_up(self):
        model, pipe = make()
        windows = pipe.windows(ragged())
        for position, batch in enumerate(next(windows)):
            pipe.backward(loss_of(model, batch))
            if position == 1:
                break
        other, resumed = make()
        resumed.load_state_dict(pipe.state_dict())
        with pytest.raises(OSError, match="the disk is gone"):
            train(resumed, other, failing_at(1, ragged()))

    def test_a_weight_that_is_no_weight(self):
        weights = iter([1.0, -1.0])
        model, pipe = make(weight=lambda batch: next(weights))
        with pytest.raises(tg.ConfigError, match=r"weighs -1\.0"):
            train(pipe, model, ragged())

    def test_step_before_the_last_micro_batch(self):
        model, pipe = make()
        for batch in next(pipe.windows(ragged())):
            pipe.backward(loss_of(model, batch))
            break
        with pytest.raises(tg.UsageError, match="after 1 of the window's 3"):
            pipe.step()

    def test_batches_that_are_not_there(self):
        _, pipe = make()
        window = next(pipe.windows(ragged()))
        assert len(window) == len(window.batches) == 3
        batch = next(iter(window))
        assert window.batches[0] is batch
        assert [one is batch for one in window.batches] == [True]
        with pytest.raises(tg.UsageError, match="holds the current one only, which is number 0"):
            window.batches[1]

    def test_a_rank_without_batches_has_none_to_give(self):
        collective = HasTwin()
        _, pipe = make(collective=collective)
        twin = [4.0, 1.0, 3.0, 0.0]  # its weight, number of batches, K, and that it has not ended; the rest is alike
        collective.all_gather = lambda tensor: torch.stack(
            [tensor, torch.cat([torch.tensor(twin).double(), tensor[4:]])]
        )
        window = next(pipe.windows([]))
        with pytest.raises(tg.UsageError, match="holds none: this rank has none"):
            window.batches[0]


class TestState:
    def test_n_is_not_told_before_the_last_is_fetched(self):
        model, pipe = make()
        for window in pipe.windows(ragged(3)):
            for position, batch in enumerate(window):
                assert window.expected_weights == {"loss": 12.0}
                if position < 2:
                    with pytest.raises(tg.UsageError, match=f"not known yet: {position + 1} of the window's 3 micro"):
                        assert window.total_weight
                else:
                    assert window.total_weights == {"loss": window.total_weight} == {"loss": 13.0}
                pipe.backward(loss_of(model, batch))
            pipe.step()

    def test_n_is_told_where_a_loader_has_ended(self):
        model, pipe = make()
        for window in pipe.windows(ragged(2)):
            for batch in window:
                pipe.backward(loss_of(model, batch))
            assert (len(window), window.total_weight) == (2, 11.0)
            pipe.step()

    @pytest.mark.parametrize("stop", range(8))
    def test_resumed_anywhere_is_bit_identical(self, stop):
        straight, other = make()
        train(other, straight, ragged(8))

        model, pipe = make()
        done = 0
        for window in pipe.windows(ragged(8)):
            for batch in window:
                if done == stop:
                    break
                pipe.backward(loss_of(model, batch))
                done += 1
            if done == stop:
                break
            pipe.step()
        state, weights = pipe.state_dict(), model.state_dict()

        resumed, pipe = make()
        resumed.load_state_dict(weights)
        pipe.load_state_dict(state)
        assert state["num_consumed"] == max(stop - 1, 0) // 3 * 3
        train(pipe, resumed, ragged(8)[state["num_consumed"] :])
        assert torch.equal(resumed.weight, straight.weight)

    @pytest.mark.parametrize("saved_by", ["batch", "window"])
    def test_an_open_window_is_taken_up_by_either_fetch(self, saved_by):
        """Where all batches weigh the same, both have seen the same."""
        model, pipe = make(saved_by, k=1)
        window = next(pipe.windows(batches(2)))
        for batch in window:
            pipe.backward(loss_of(model, batch))
        other, resumed = make({"batch": "window", "window": "batch"}[saved_by], k=1)
        resumed.load_state_dict(pipe.state_dict())
        train(resumed, other, batches(2))
        pipe.step()
        train(pipe, model, batches(2)[1:])
        assert torch.equal(other.weight, model.weight)

    def test_a_window_that_had_been_fetched_goes_on_as_it_was(self):
        model, pipe = make("window")
        windows = pipe.windows(ragged())
        for batch in next(windows):
            pipe.backward(loss_of(model, batch))
            break
        model, resumed = make("batch")
        resumed.load_state_dict(pipe.state_dict())
        with pytest.raises(
            tg.StateMismatchError, match=r'had all been fetched; go on with Accumulate\(fetch="window"\)'
        ):
            train(resumed, model, ragged())

    def test_another_loader_is_noticed(self):
        model, pipe = make()
        for position, batch in enumerate(next(pipe.windows(ragged()))):
            pipe.backward(loss_of(model, batch))
            if position == 1:
                break
        model, resumed = make()
        resumed.load_state_dict(pipe.state_dict())
        with pytest.raises(tg.StateMismatchError, match=r"after 2 micro-batches"):
            train(resumed, model, [*ragged(1), *batches(3)])


class TestPlan:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"micro_batches": None, "window_weight": 8.0}, "window_weight"),
            ({"losses": ("one", "two")}, "losses"),
            ({"source": "split"}, "source"),
            ({"partial": "carry"}, "partial"),
            ({"partial": "drop"}, "partial"),
            ({"on_oom": "split"}, "on_oom"),
        ],
    )
    def test_what_needs_a_whole_window(self, settings, named):
        with pytest.raises(tg.IncompatiblePlanError, match=f'fetch="batch" needs {named}='):
            tg.Accumulate(**{"micro_batches": 2, "fetch": "batch", **settings})

    def test_unknown(self):
        with pytest.raises(tg.ConfigError, match="fetch"):
            tg.Accumulate(2, fetch="later")

    def test_the_noise_scale_needs_one_n(self):
        with pytest.raises(tg.IncompatiblePlanError, match="noise_scale"):
            tg.Plan(accumulate=tg.Accumulate(2, fetch="batch"), noise_scale=NoiseScale())

    def test_loops_that_cut_windows_themselves(self):
        plan = tg.Plan(accumulate=tg.Accumulate(2, fetch="batch"))
        with pytest.raises(tg.ConfigError, match="accumulate_grad_batches"):
            with_micro_batches(plan, 2, "accumulate_grad_batches")

    def test_a_schedule(self):
        model, pipe = make(k=((0, 1), (2, 3)))
        records = train(pipe, model, ragged(8))
        assert [record.micro_batches for record in records] == [1, 1, 3, 3]
        assert [record.weight for record in records] == [4.0, 7.0, 10.0, 15.0]
