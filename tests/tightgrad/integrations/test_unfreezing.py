"""Layers that are unfrozen and given to the optimizer while training: taken in on one device, refused on several."""

import lightning
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import tightgrad as tg
from support.accelerate_state import reset
from support.lightning_fits import COMPRESSED, FILTERS, Regression, close, fit, rows
from support.ranks import run_ranks
from support.tagging import launched
from tightgrad.integrations.accelerate import TightAccelerator
from tightgrad.integrations.lightning import TightGrad

pytestmark = [pytest.mark.filterwarnings(text) for text in FILTERS]
FEEDBACK_FREE = tg.Plan(compress=tg.Compress(tg.codecs.Cast("float32")))
FEEDBACK = tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()))


class Unfreezes(callbacks.BaseFinetuning):
    def freeze_before_training(self, module):
        self.freeze(module.first)

    def finetune_function(self, module, epoch, optimizer):
        if epoch >= 1 and not module.first.weight.requires_grad:
            self.unfreeze_and_add_param_group(module.first, optimizer, lr=0.01)


class Partly(Regression):
    """Gives the optimizer what is trainable, as the docs of Lightning say."""

    def configure_optimizers(self):
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.01)


class Late(Partly):
    """Unfreezes by itself, after a batch of the first epoch."""

    def __init__(self, at):
        super().__init__()
        self.at = at
        self.first.requires_grad_(False)

    def on_train_batch_end(self, outputs, batch, index):
        if index == self.at and self.current_epoch == 0:
            self.first.requires_grad_(True)
            self.trainer.optimizers[0].add_param_group({"params": list(self.first.parameters()), "lr": 0.01})


class Hooked(Partly):
    def on_before_optimizer_step(self, optimizer):
        self.seen.append(len([p for p in self.parameters() if p.grad is not None]))
        self.last.bias.grad.zero_()

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.seen.append(self.grad_norm())
        self.clip_gradients(optimizer, 0.01, "norm")


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", [Partly, Hooked])
def test_a_callback_that_unfreezes_does_what_it_does_in_lightning(kind, steps):
    plain, tight, callback = kind(), kind(), TightGrad()
    fit(plain, [Unfreezes()], epochs=3, accumulate_grad_batches=steps)
    fit(tight, [callback, Unfreezes()], epochs=3, accumulate_grad_batches=steps)
    assert close(tight, plain)
    assert not torch.equal(tight.first.weight, kind().first.weight)
    assert tight.seen == pytest.approx(plain.seen, rel=1e-4)
    assert callback.pipe.state.step == 3 * 8 // steps


def test_what_methods_remember_is_kept():
    held = {}

    class Looks(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            slots = callback.pipe.state.slots["residual"]
            held[trainer.current_epoch] = {name: value.clone() for name, value in slots.items()}

        def on_train_batch_start(self, trainer, module, batch, index):
            if trainer.current_epoch == 1 and index == 0:
                held["taken over"] = {n: v.clone() for n, v in callback.pipe.state.slots["residual"].items()}

    tight, callback = Partly(), TightGrad(FEEDBACK)
    fit(tight, [callback, Unfreezes(), Looks()], epochs=2)
    assert held[0].keys() == held["taken over"].keys() == {"last.weight", "last.bias"}
    assert all(torch.equal(held[0][name], value) for name, value in held["taken over"].items())
    assert held[1].keys() == {"last.weight", "last.bias", "first.weight", "first.bias"}
    assert callback.pipe.state.step == 16


def test_unfreezing_between_two_windows():
    plain, tight = Late(3), Late(3)
    fit(plain, accumulate_grad_batches=4)
    fit(tight, [TightGrad()], accumulate_grad_batches=4)
    assert close(tight, plain)


def test_unfreezing_inside_of_a_window_is_named():
    module = Late(2)
    with pytest.raises(tg.UsageError, match=r"has left out 'first.weight', 'first.bias'.*between two windows"):
        fit(module, [TightGrad(COMPRESSED)], accumulate_grad_batches=4)


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist:UserWarning")
def test_a_fit_that_is_resumed_after_unfreezing(tmp_path):
    def trained(epochs, path=None):
        module, callback = Partly(), TightGrad(FEEDBACK)
        settings = {"accelerator": "cpu", "logger": False, "barebones": True}
        trainer = lightning.Trainer(max_epochs=epochs, callbacks=[callback, Unfreezes()], **settings)
        trainer.fit(module, DataLoader(rows(), batch_size=2), ckpt_path=path)
        return trainer, module

    trained(2)[0].save_checkpoint(tmp_path / "kept.ckpt")
    _, resumed = trained(3, tmp_path / "kept.ckpt")
    _, whole = trained(3)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def unfreezing_ranks(name):
    plan = tg.Plan(compress=tg.Compress(tg.codecs.Cast("float32"))) if name == "compressed" else None
    with launched():
        module = Partly()
        strategy = DDPStrategy(process_group_backend="gloo")
        with pytest.raises(
            tg.UnsupportedError, match=r"Unfreezes unfreezes .* on 2 ranks.*Fit twice.*lr is 0 at first"
        ):
            fit(module, [TightGrad(plan), Unfreezes()], epochs=2, strategy=strategy, devices=2)
        found = []
        for way in (fit_twice, group_at_rest):
            modules = [Partly(), Partly()]
            for module, own in zip(modules, ([], [TightGrad(plan)]), strict=True):
                way(module, own)
            found.append(close(*modules) and not torch.equal(modules[1].first.weight, Partly().first.weight))
    return found


def fit_twice(module, own):
    """The first way out: a trainer for each half, frozen first and unfrozen then."""
    for trains in (False, True):
        module.first.requires_grad_(trains)
        fit(module, own, strategy=DDPStrategy(process_group_backend="gloo"), devices=2)


def group_at_rest(module, own):
    """The second one: all trainable, and a group of the optimizer whose lr is 0 at first."""

    class Wakes(lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            trainer.optimizers[0].param_groups[1]["lr"] = 0.01 * trainer.current_epoch

    groups = [{"params": module.last.parameters()}, {"params": module.first.parameters(), "lr": 0.0}]
    module.configure_optimizers = lambda: torch.optim.Adam(groups, lr=0.01)
    strategy = DDPStrategy(process_group_backend="gloo")
    fit(module, [*own, Wakes()], epochs=2, strategy=strategy, devices=2)


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_on_two_ranks_it_is_refused_and_both_ways_out_are_right(name):
    assert run_ranks(2, unfreezing_ranks, name) == [[True, True]] * 2


def rest_of_the_loop(prepare):
    """Train Accelerate's loop in two epochs of 4 batches, the first layer only in the second."""
    model = Partly()
    model.first.requires_grad_(False)
    optimizer = model.configure_optimizers()
    accelerator, model, optimizer, loader = prepare(model, optimizer, DataLoader(rows(8), batch_size=2))
    for epoch in range(2):
        if epoch == 1:
            model.first.requires_grad_(True)
            optimizer.add_param_group({"params": list(model.first.parameters()), "lr": 0.01})
        for batch in loader:
            accelerator.backward(Regression.training_step(model, batch, 0))
            if accelerator.sync_gradients:
                optimizer.step()
                optimizer.zero_grad()
    return accelerator, model


def test_in_accelerates_loop():

    class ByHand:
        def backward(self, loss):
            self.number = getattr(self, "number", 0) + 1
            (loss / 2).backward()

        @property
        def sync_gradients(self):
            return self.number % 2 == 0

    def tight(*parts):
        accelerator = TightAccelerator(plan=FEEDBACK_FREE, gradient_accumulation_steps=2, cpu=True)
        return accelerator, *accelerator.prepare(*parts)

    try:
        accelerator, found = rest_of_the_loop(tight)
    finally:
        reset()
    _, plain = rest_of_the_loop(lambda *parts: (ByHand(), *parts))
    assert accelerator.pipe.state.step == 4
    assert close(found, plain)
