"""Hooks of modules and callbacks between backward and step: called as by Lightning alone, on summed gradients."""

import lightning
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

import tightgrad as tg
from support.lightning_fits import COMPRESSED, FILTERS, Regression, both, close, fit, unmoved
from support.ranks import run_ranks
from support.tagging import launched
from tightgrad.integrations.lightning import TightGrad

pytestmark = [pytest.mark.filterwarnings(text) for text in FILTERS]


class OwnClip(Regression):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.seen.append((gradient_clip_val, self.grad_norm()))
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.01)


class ClipOfTrainer(Regression):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.seen.append(gradient_clip_val)
        factor = 0.5 if self.global_step else 1.0
        for parameter in self.parameters():
            parameter.grad.mul_(factor)
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


class HalvesOnePart(Regression):
    def on_before_optimizer_step(self, optimizer):
        self.seen.append(self.grad_norm())
        self.log("norm", self.seen[-1])
        self.first.weight.grad.mul_(0.5)
        self.first.bias.grad = None


class Early(Regression):
    def on_after_backward(self):
        self.seen.append(self.grad_norm())
        self.last.bias.grad.zero_()


class Watching(Regression):
    def on_before_backward(self, loss):
        self.seen.append(float(loss.detach()))

    def on_after_backward(self):
        self.seen.append([name for name, p in self.named_parameters() if p.grad is None])


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", [OwnClip, HalvesOnePart, Early, Watching])
def test_a_hook_does_what_it_does_in_lightning(kind, steps):
    plain, tight = both(kind, accumulate_grad_batches=steps)
    assert len(tight.seen) == len(plain.seen)
    assert close(tight, plain)


def test_the_modules_clipping_is_given_the_trainers_values_and_is_the_only_one():
    plain, tight = both(ClipOfTrainer, gradient_clip_val=0.02)
    assert tight.seen == plain.seen == [0.02] * 8
    assert close(tight, plain)


def test_the_modules_clipping_sees_what_compression_delivers():
    module = OwnClip()
    fit(module, [TightGrad(COMPRESSED)], accumulate_grad_batches=4)
    assert len(module.seen) == 2
    moved = sum(
        float((p - q).detach().square().sum()) for p, q in zip(module.parameters(), OwnClip().parameters(), strict=True)
    )
    assert moved**0.5 <= 2 * 0.01 * 0.01 * 1.001


def test_the_record_has_the_norm_before_the_modules_clipping():
    module, callback = OwnClip(), TightGrad()
    fit(module, [callback])
    assert callback.loop.record.grad_norm == pytest.approx(module.seen[-1][1], rel=1e-5)


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_edits_before_the_step_come_before_the_plans_clip(name):
    plain, tight = HalvesOnePart(), HalvesOnePart()
    fit(plain, gradient_clip_val=0.05)
    compress = tg.Compress(tg.codecs.Cast("float32")) if name == "compressed" else None
    fit(tight, [TightGrad(tg.Plan(compress=compress, clip=tg.clip.GlobalNorm(0.05)))])
    assert tight.seen == pytest.approx(plain.seen, rel=1e-4)
    assert close(tight, plain)


def test_a_callbacks_hook_counts_as_well():
    class Zeroes(lightning.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            module.last.weight.grad.zero_()

    tight = Regression()
    fit(tight, [TightGrad(COMPRESSED), Zeroes()])
    assert torch.equal(tight.last.weight, Regression().last.weight)
    assert not unmoved(tight)


def test_an_edit_of_gradients_that_compression_has_not_summed_yet_is_refused():
    module = Early()
    with pytest.raises(tg.UsageError, match=r"Early has changed the gradient of 'last.bias'.*on_before_optimizer_step"):
        fit(module, [TightGrad(COMPRESSED)])
    assert unmoved(module)


def test_looking_is_no_edit():
    module = Watching()
    fit(module, [TightGrad(COMPRESSED)])
    assert len(module.seen) == 16


def test_edits_of_bfloat16_gradients_count_in_float32():
    class Low(HalvesOnePart):
        def training_step(self, batch, index):
            return super().training_step(batch.bfloat16(), index)

    plain, tight = both(lambda: Low().bfloat16())
    assert close(tight, plain, rel=1e-2)
    assert torch.equal(tight.first.bias, Low().bfloat16().first.bias)


def test_a_hook_that_would_see_no_gradients_is_refused():
    module = Watching().bfloat16()
    with pytest.raises(tg.UnsupportedError, match="Watching overrides on_after_backward, which would see no gradients"):
        fit(module, [TightGrad()])


class Manual(Regression):
    automatic_optimization = False

    def __init__(self, limit=None, twice=False, every=1, **backward):
        super().__init__()
        self.automatic_optimization = False
        self.limit, self.every, self.settings = limit, every, backward

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.manual_backward(loss, **self.settings)
        if self.limit is not None:
            self.clip_gradients(self.optimizers(), gradient_clip_val=self.limit, gradient_clip_algorithm="norm")
        if (index + 1) % self.every == 0:
            self.optimizers().step()


def test_the_same_clipping_in_a_manual_step_is_left_to_the_plan():
    plain, tight = Regression(), Manual(limit=0.05)
    fit(plain, gradient_clip_val=0.05)
    fit(tight, [TightGrad(tg.Plan(clip=tg.clip.GlobalNorm(0.05)))])
    assert close(tight, plain)


class Clears(Manual):
    def training_step(self, batch, index):
        self.optimizers().zero_grad()
        super().training_step(batch, index)
        self.trainer.optimizers[0].zero_grad()


def test_clearing_in_a_manual_step_leaves_the_window_alone():
    plain, tight = Regression(), Clears()
    fit(plain, accumulate_grad_batches=4)
    trainer = fit(tight, [TightGrad(tg.Plan(tg.Accumulate(4)))])
    assert close(tight, plain)
    assert "zero_grad" not in vars(trainer.optimizers[0])


@pytest.mark.parametrize(
    ("module", "plan", "error", "text"),
    [
        (Manual(limit=0.1), tg.Plan(clip=tg.clip.GlobalNorm(0.05)), tg.UsageError, r"max_norm=0.1.*max_norm=0.05"),
        (Manual(limit=0.1), tg.Plan(), tg.UsageError, "the plan clips with None"),
        (Manual(every=4), tg.Plan(), tg.UsageError, r"optimizer.step\(\) was not called in training_step for batch 0"),
        (Manual(retain_graph=True), tg.Plan(), tg.UnsupportedError, "retain_graph=True"),
        (Manual(every=8), tg.Plan(tg.Accumulate(4)), tg.UsageError, "for batch 3, where a window of 4 batches ends"),
    ],
)
def test_a_manual_step_that_does_something_else_is_refused_before_weights_move(module, plan, error, text):
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(error, match=text):
        fit(module, [TightGrad(plan)])
    assert all(torch.equal(have, want) for have, want in zip(module.parameters(), before, strict=True))


class SkipsSecond(Regression):
    def optimizer_step(self, epoch, index, optimizer, closure):
        if index == 1:
            closure()
        else:
            optimizer.step(closure=closure)


class ClosureFirst(Regression):
    def optimizer_step(self, epoch, index, optimizer, closure):
        closure()
        if index != 2:
            optimizer.step()


class WarmsUp(Regression):
    def optimizer_step(self, epoch, index, optimizer, closure):
        optimizer.step(closure=closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (index + 1)


@pytest.mark.parametrize("kind", [SkipsSecond, ClosureFirst, WarmsUp])
def test_a_module_that_decides_on_its_step(kind):
    plain, tight = both(kind, epochs=2)
    assert close(tight, plain)


def test_an_epoch_that_is_left_early_drops_its_window():
    class Stops(Regression):
        def on_train_batch_start(self, batch, index):
            return -1 if index == 6 else None

    plain, tight, callback = Stops(), Stops(), TightGrad()
    fit(plain, epochs=2, accumulate_grad_batches=4)
    with pytest.warns(tg.TightGradWarning, match="the epoch was left after 2 of the 4 batches"):
        fit(tight, [callback], epochs=2, accumulate_grad_batches=4)
    assert callback.pipe.state.step == 2
    assert close(tight, plain)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.:UserWarning")
def test_a_training_step_without_a_loss_is_named():
    class Nothing(Regression):
        def training_step(self, batch, index):
            return None if index == 1 else super().training_step(batch, index)

    module = Nothing()
    with pytest.raises(tg.UsageError, match="training_step returned None for batch 1"):
        fit(module, [TightGrad()], accumulate_grad_batches=2)
    assert unmoved(module)


def hooked_ranks(name):
    with launched():
        modules = [OwnClip(), OwnClip()]
        own = TightGrad(tg.Plan(compress=tg.Compress(tg.codecs.Cast("float32"))) if name == "compressed" else None)
        for module, callbacks in zip(modules, ([], [own]), strict=True):
            strategy = DDPStrategy(process_group_backend="gloo")
            fit(module, callbacks, strategy=strategy, devices=2, accumulate_grad_batches=2)
    plain, tight = modules
    assert len(plain.seen) == 2
    assert [norm for _, norm in tight.seen] == pytest.approx([norm for _, norm in plain.seen], rel=1e-5)
    assert close(tight, plain)
    return True


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_the_modules_clipping_on_two_ranks(name):
    assert all(run_ranks(2, hooked_ranks, name))
