"""LBFGS, SAM and their like: a whole window is the closure of the optimizer's step."""

import math

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.closing import KINDS, CallsTwice, Climbing, by_hand, lbfgs, sam, strong_wolfe, twice
from support.in_turn import in_turn
from support.training import snapshot

SIZES = (4, 2, 5, 4, 4, 3, 1, 4)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(n, 6, generator=generator), torch.randn(n, 1, generator=generator)) for n in SIZES]
    return [(x.to(dtype), y.to(dtype)) for x, y in rows]


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def big(batches, size):
    whole = [batches[i : i + size] for i in range(0, len(batches), size)]
    return [tuple(torch.cat(parts) for parts in zip(*window, strict=True)) for window in whole]


def flat(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def run(pipe, model, batches, loss=squares):
    return [pipe.run(window, lambda batch: loss(model, batch)) for window in pipe.windows(batches)]


def plan_of(micro_batches, **settings):
    fetch = settings.pop("fetch", "window")
    return tg.Plan(accumulate=tg.Accumulate(micro_batches, fetch=fetch), **settings)


class TestTheStepIsThatOfTheBigBatch:
    @pytest.mark.parametrize(("kind", "micro_batches", "max_norm"), in_turn(KINDS, [4, 1], [None, 0.7]))
    def test_as_by_hand_in_float64(self, kind, micro_batches, max_norm):
        model, reference = network(), network()
        clip = None if max_norm is None else tg.clip.GlobalNorm(max_norm, compat="torch")
        pipe = tg.attach(model, kind(model.parameters()), plan_of(micro_batches, clip=clip))
        records = run(pipe, model, data())
        losses = by_hand(reference, kind(reference.parameters()), squares, big(data(), micro_batches), max_norm)
        tolerance = {"rtol": 1e-7, "atol": 1e-9} if max_norm is None else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(flat(model), flat(reference), **tolerance)
        assert [record.loss for record in records] == pytest.approx(losses, rel=1e-6)
        assert [record.step for record in records] == list(range(8 // micro_batches))
        assert float((flat(model) - flat(network())).norm()) > 1e-3

    @pytest.mark.parametrize("kind", [strong_wolfe, sam])
    def test_float32_is_close_to_it(self, kind):
        model, reference = network(torch.float32), network()
        run(tg.attach(model, kind(model.parameters()), plan_of(4)), model, data(torch.float32))
        by_hand(reference, kind(reference.parameters()), squares, big(data(), 4))
        torch.testing.assert_close(flat(model), flat(reference), rtol=1e-4, atol=1e-4)

    def test_by_default_one_process_keeps_the_batches_that_a_closure_needs(self):
        model = network()
        pipe = tg.attach(model, lbfgs(model.parameters()), plan_of(4, fetch="auto"))
        assert [record.micro_batches for record in run(pipe, model, data())] == [4, 4]

    def test_the_empty_plan(self):
        model, reference = network(), network()
        run(tg.attach(model, strong_wolfe(model.parameters()), tg.Plan()), model, data())
        by_hand(reference, strong_wolfe(reference.parameters()), squares, data())
        assert torch.equal(flat(model), flat(reference))

    def test_several_losses_with_denominators_of_their_own(self):
        model, reference = network(), network()
        plan = tg.Plan(accumulate=tg.Accumulate(4, losses=("fit", "size")))
        weigh = lambda batch: {"fit": len(batch[0]), "size": 2.0}  # noqa: E731
        pipe = tg.attach(model, strong_wolfe(model.parameters()), plan, weight=weigh)

        def losses(model, batch):
            return {"fit": squares(model, batch), "size": model(batch[0][:1]).square().sum()}

        run(pipe, model, data(), losses)

        def whole(model, window):
            samples = sum(len(x) for x, _ in window)
            fit = sum(squares(model, batch) * len(batch[0]) for batch in window) / samples
            return fit + sum(model(x[:1]).square().sum() for x, _ in window) / len(window)

        by_hand(reference, strong_wolfe(reference.parameters()), whole, [data()[:4], data()[4:]])
        torch.testing.assert_close(flat(model), flat(reference), rtol=1e-7, atol=1e-9)

    @pytest.mark.parametrize("scale", [tg.LossScale(initial=64.0), None])
    def test_a_loss_scale_leaves_loss_and_gradient_as_they_are(self, scale):
        model, reference = network(), network()
        scaler = None if scale else torch.amp.GradScaler("cpu", init_scale=64.0, enabled=True)
        pipe = tg.attach(model, strong_wolfe(model.parameters()), plan_of(4, loss_scale=scale), scaler=scaler)
        assert [record.loss_scale for record in run(pipe, model, data())] == [64.0, 64.0]
        by_hand(reference, strong_wolfe(reference.parameters()), squares, big(data(), 4))
        torch.testing.assert_close(flat(model), flat(reference), rtol=1e-7, atol=1e-9)

    def test_out_of_memory_in_a_later_pass(self):
        model, reference, calls = network(), network(), []

        def loss_of(model, batch):
            calls.append(len(batch[0]))
            if len(calls) == 6:
                raise torch.OutOfMemoryError("injected: out of memory")
            return squares(model, batch)

        plan = tg.Plan(accumulate=tg.Accumulate(4, on_oom="split"))
        run(tg.attach(model, sam(model.parameters()), plan), model, data(), loss_of)
        by_hand(reference, sam(reference.parameters()), squares, big(data(), 4))
        torch.testing.assert_close(flat(model), flat(reference), rtol=1e-7, atol=1e-9)
        assert min(calls) < min(SIZES[:4])


class TestPasses:
    def test_an_optimizer_that_calls_first_at_the_same_weights_costs_no_pass(self):
        model, calls = network(), []

        def loss_of(model, batch):
            calls.append(1)
            return squares(model, batch)

        run(tg.attach(model, twice(model.parameters()), plan_of(4)), model, data()[:4], loss_of)
        assert len(calls) == 8

    def test_one_that_takes_a_closure_and_ignores_it_is_as_by_hand(self):
        class Ignores(torch.optim.SGD):
            def step(self, closure=None):
                return super().step()

        models = [network(), network()]
        for model, kind in zip(models, (Ignores, torch.optim.SGD), strict=True):
            run(tg.attach(model, kind(model.parameters(), lr=0.1), plan_of(4)), model, data())
        assert torch.equal(flat(models[0]), flat(models[1]))

    @pytest.mark.parametrize("kind", [strong_wolfe, sam])
    def test_dropout_draws_the_same_masks_in_each_pass_and_batch_norm_counts_the_first(self, kind):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
        drawn = []
        model[2].register_forward_hook(lambda _, given, out: drawn.append((out == 0) & (given[0] != 0)))
        pipe = tg.attach(model, kind(model.parameters()), plan_of(1))
        torch.manual_seed(5)
        run(pipe, model, data()[:1])
        assert len(drawn) >= 2
        assert all(torch.equal(mask, drawn[0]) for mask in drawn)
        assert int(model[1].num_batches_tracked) == 1
        after = torch.rand(1)
        torch.manual_seed(5)
        nn.functional.dropout(torch.ones(4, 8, dtype=torch.float64), 0.5)
        assert torch.equal(after, torch.rand(1)), "the generator is where one pass leaves it"

    def test_a_scheduler_steps_once_for_each_step(self):
        model = network()
        optimizer = lbfgs(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        run(tg.attach(model, optimizer, plan_of(4), scheduler=scheduler), model, data())
        assert optimizer.param_groups[0]["lr"] == 0.1 * 0.25

    def test_what_methods_remember_is_of_the_last_pass(self):
        model = network()
        pipe = tg.attach(model, sam(model.parameters()), plan_of(4, clip=tg.clip.AutoClip(percentile=50)))
        run(pipe, model, data())
        (held,) = [value for slot in pipe.state_dict()["slots"].values() for value in slot.values() if value.dim() == 1]
        assert int(held.isfinite().sum()) == 2, "one norm for each of two steps"


class TestAStepThatIsNotAdmitted:
    """Weights, the optimizer's memory and the pipeline's state are as before it, also where a later pass fails."""

    @staticmethod
    def poisoned(at):
        calls = []

        def loss_of(model, batch):
            calls.append(1)
            return squares(model, batch) * (math.nan if len(calls) == at else 1.0)

        return loss_of

    @pytest.mark.parametrize(("kind", "at"), in_turn([lbfgs, strong_wolfe, sam, twice], [6, 11]))
    def test_skip(self, kind, at):
        model, reference = network(), network()
        optimizer = kind(model.parameters())
        pipe = tg.attach(model, optimizer, plan_of(4, guard=tg.Guard("skip")))
        whole = [*data(), *data()]
        first = run(pipe, model, whole[:4])
        before, calls = snapshot(model, optimizer), []
        count = self.poisoned(at - 4)
        records = run(pipe, model, whole[4:8], lambda *given: calls.append(1) or count(*given))
        assert [record.skip_reason for record in first + records] == [None, "nonfinite"]
        assert pipe.state.step == 1
        assert all(map(torch.equal, snapshot(model, optimizer), before))
        run(pipe, model, whole[8:12])
        by_hand(reference, kind(reference.parameters()), squares, big(whole[:4] + whole[8:12], 4))
        torch.testing.assert_close(flat(model), flat(reference), rtol=1e-7, atol=1e-9)

    @pytest.mark.parametrize("kind", [lbfgs, sam])
    def test_raise_and_errors_of_the_loss(self, kind):
        for error in (math.nan, ZeroDivisionError("of the user's own")):
            model, calls = network(), []
            optimizer = kind(model.parameters())
            pipe = tg.attach(model, optimizer, plan_of(4))
            before = flat(model)

            def loss_of(model, batch, error=error, calls=calls):
                calls.append(1)
                if len(calls) == 7 and isinstance(error, Exception):
                    raise error
                return squares(model, batch) * (math.nan if len(calls) == 7 else 1.0)

            with pytest.raises((tg.NonFiniteGradientError, ZeroDivisionError)):
                run(pipe, model, data(), loss_of)
            assert torch.equal(flat(model), before)
            assert not any(isinstance(value, list) for slot in optimizer.state.values() for value in slot.values())
            pipe.abandon()
            assert len(run(pipe, model, data())) == 2

    def test_an_overflow_in_a_later_pass_halves_the_loss_scale(self):
        model = network(torch.float32)
        pipe = tg.attach(model, sam(model.parameters()), plan_of(4, loss_scale=tg.LossScale(initial=64.0)))
        before = flat(model)
        records = run(pipe, model, data(torch.float32)[:4], self.poisoned(6))
        assert records[0].skipped
        assert torch.equal(flat(model), before)
        assert run(pipe, model, data(torch.float32)[:4])[0].loss_scale == 32.0

    def test_weights_that_move_on_purpose_accuse_nobody(self):
        """Warnings are errors here. The watch itself is on: a write by somebody else is told."""
        model = network()
        pipe = tg.attach(model, sam(model.parameters()), plan_of(4))
        run(pipe, model, data())

        def meddling(model, batch):
            with torch.no_grad():
                model[0].weight.mul_(1.0)
            return squares(model, batch)

        with pytest.warns(tg.TightGradWarning, match="weights were written between two backwards"):
            run(pipe, model, data()[:4], meddling)


class TestRefused:
    @pytest.mark.parametrize("kind", [lbfgs, sam])
    def test_a_loop_by_hand_is_told_what_to_write(self, kind):
        model = network()
        pipe = tg.attach(model, kind(model.parameters()), plan_of(4))
        before = flat(model)
        for window in pipe.windows(data()[:4]):
            for batch in window:
                pipe.backward(squares(model, batch))
            with pytest.raises(tg.UnsupportedError, match=r"evaluates the loss again.*pipe.run\(window, loss_of\)"):
                pipe.step()
            pipe.abandon()
        assert torch.equal(flat(model), before)

    @pytest.mark.parametrize(
        ("plan", "words"),
        [
            (
                tg.Plan(compress=tg.Compress(tg.codecs.TopK(density=0.1), feedback=tg.ErrorFeedback())),
                "TwoStepSAM takes several gradients in one step, and error feedback.*Cast",
            ),
            (plan_of(4, fetch="batch"), 'TwoStepSAM needs a closure.*fetch="window"'),
        ],
    )
    def test_plans(self, plan, words):
        model = network()
        with pytest.raises(tg.UnsupportedError, match=words):
            tg.attach(model, sam(model.parameters()), plan)

    def test_several_optimizers(self):
        model = network()
        optimizers = [lbfgs(model[0].parameters()), torch.optim.SGD(model[2].parameters(), lr=0.1)]
        with pytest.raises(tg.UnsupportedError, match=r"LBFGS needs a closure.*give it all parameters"):
            tg.attach(model, optimizers, plan_of(4))

    @pytest.mark.parametrize(
        ("plan", "error", "words"),
        [
            (
                tg.Plan(compress=tg.Compress(tg.codecs.TopK(density=0.1), feedback=tg.ErrorFeedback())),
                tg.UnsupportedError,
                "CallsTwice takes several gradients",
            ),
            (plan_of(4, fetch="batch"), tg.UsageError, r'Take Accumulate\(fetch="window"\)'),
        ],
    )
    def test_one_that_does_not_say_that_it_needs_a_closure_is_told_when_it_asks(self, plan, error, words):
        model = network(torch.float32)
        pipe = tg.attach(model, CallsTwice(model.parameters(), lr=0.1), plan)
        before = flat(model)
        with pytest.raises(error, match=words):
            run(pipe, model, data(torch.float32))
        assert torch.equal(flat(model), before)

    def test_where_memory_is_short_one_has_to_say_that_it_needs_a_closure(self):
        """Others get none, and no copy of their weights is held."""

        class Asserting(CallsTwice):
            def step(self, closure=None):
                assert closure is not None, "needs a closure"
                return super().step(closure)

        class Closing(Asserting):
            def step(self, closure):
                return super().step(closure)

        plan = tg.Plan(accumulate=tg.Accumulate(4, on_oom="split"))
        model, reference = network(), network()
        pipe = tg.attach(model, Asserting(model.parameters(), lr=0.1), plan)
        with pytest.raises(tg.UnsupportedError, match=r"`class Closing\(Asserting\): def step\(self, closure\)"):
            run(pipe, model, data())
        assert torch.equal(flat(model), flat(reference))
        pipe.abandon()
        run(tg.attach(model, Closing(model.parameters(), lr=0.1), plan), model, data())
        by_hand(reference, twice(reference.parameters()), squares, big(data(), 4))
        torch.testing.assert_close(flat(model), flat(reference), rtol=1e-7, atol=1e-9)

    def test_a_clip_that_insists_on_folding(self):
        model, clip = network(torch.float32), tg.clip.GlobalNorm(1.0, fold="on")
        with pytest.raises(tg.ConfigError, match="fold"):
            tg.attach(model, Climbing(model.parameters(), lr=0.1), plan_of(4, clip=clip))
