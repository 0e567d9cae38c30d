"""Accumulation schedules in Lightning: `GradientAccumulationScheduler`, a callback or a module that sets the number."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset

import tightgrad as tg
from support.lightning_fits import COMPRESSED, FILTERS, Regression, close, fit, rows, unmoved
from support.ranks import run_ranks
from support.tagging import launched
from tightgrad.integrations.lightning import TightGrad

pytestmark = [pytest.mark.filterwarnings(text) for text in FILTERS]


class Records(lightning.Callback):
    """Notes how many micro-batches each step had."""

    def __init__(self, tight):
        self.tight, self.found = tight, []

    def on_train_batch_end(self, *args):
        if self.tight.pipe.state.step > len(self.found):
            self.found.append(self.tight.loop.record.micro_batches)


class Sets(lightning.Callback):
    def __init__(self, *numbers):
        self.numbers = numbers

    def on_train_epoch_start(self, trainer, module):
        trainer.accumulate_grad_batches = self.numbers[trainer.current_epoch]


class SetsItself(Regression):
    def on_train_epoch_start(self):
        self.trainer.accumulate_grad_batches = 4 - 2 * self.current_epoch


class SetsAtOnce(Regression):
    def on_train_batch_start(self, batch, index):
        if index == 2:
            self.trainer.accumulate_grad_batches = 2


@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize(
    ("schedule", "found"),
    [({0: 1, 1: 4}, [1] * 8 + [4] * 4), ({0: 4, 2: 2}, [4] * 4 + [2] * 4), ({1: 8}, [1] * 8 + [8, 8])],
)
def test_the_scheduler_does_what_it_does_in_lightning(schedule, found, comes_first):
    plain, tight, callback = Regression(), Regression(), TightGrad()
    fit(plain, [GradientAccumulationScheduler(dict(schedule))], epochs=3)
    records = Records(callback)
    own = [callback, GradientAccumulationScheduler(dict(schedule)), records]
    fit(tight, own if comes_first else own[::-1][1:] + own[::-1][:1], epochs=3)
    assert records.found == found
    assert callback.plan.accumulate.micro_batches == max(schedule.values())
    assert close(tight, plain)


@pytest.mark.parametrize("plan", [None, COMPRESSED])
@pytest.mark.parametrize(("own", "kind"), [([Sets(2, 4)], Regression), ([], SetsItself)])
def test_a_number_that_is_set_between_epochs(own, kind, plan):
    plain, tight, callback = kind(), kind(), TightGrad(plan)
    fit(plain, own, epochs=2, accumulate_grad_batches=4)
    records = Records(callback)
    fit(tight, [callback, *own, records], epochs=2, accumulate_grad_batches=4)
    assert records.found == ([2] * 4 + [4] * 2 if own else [4] * 2 + [2] * 4)
    assert plan is not None or close(tight, plain)


class Endless(IterableDataset):
    """Without a length, so that Lightning fetches one batch before the epoch has begun."""

    def __iter__(self):
        return iter(rows(16).view(8, 2, 4))


def test_a_loader_without_a_length():
    plain, tight, callback = Regression(), Regression(), TightGrad()
    for module, own in ((plain, []), (tight, [callback])):
        schedule = GradientAccumulationScheduler({0: 4, 1: 2})
        settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", callbacks=[*own, schedule], **settings)
        trainer.fit(module, DataLoader(Endless(), batch_size=None))
    assert callback.pipe.state.step == 2 + 4
    assert close(tight, plain)


@pytest.mark.parametrize("plan", [tg.Plan(), COMPRESSED])
def test_a_fit_that_is_resumed_goes_on_with_the_schedules_number(plan, tmp_path):
    def trained(epochs, path=None):
        module, callback = Regression(), TightGrad(plan)
        own = [callback, GradientAccumulationScheduler({0: 4, 1: 2})]
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=own, logger=False, barebones=True)
        trainer.fit(module, DataLoader(rows(), batch_size=2), ckpt_path=path)
        return trainer, module, callback

    trainer, _, _ = trained(2)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    _, resumed, callback = trained(3, tmp_path / "kept.ckpt")
    assert callback.pipe.state.step == 2 + 4 + 4
    _, whole, _ = trained(3)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_loader_that_is_made_anew_in_each_epoch():
    class Reloads(Regression):
        def train_dataloader(self):
            return DataLoader(rows(), batch_size=2)

    tight, plain = Reloads(), Reloads()
    for module, own in ((tight, [TightGrad()]), (plain, [])):
        trainer = lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            callbacks=own,
            barebones=True,
            accumulate_grad_batches=4,
            reload_dataloaders_every_n_epochs=1,
        )
        trainer.fit(module)
    assert close(tight, plain)


def test_a_number_that_changes_inside_of_an_epoch_is_named():
    module, callback = SetsAtOnce(), TightGrad()
    with pytest.raises(tg.UsageError, match=r"changed from 4 to 2 in the middle of an epoch.*on_train_epoch_start"):
        fit(module, [callback], accumulate_grad_batches=4)
    assert unmoved(module)


def test_a_number_above_the_first_has_to_be_known_at_the_beginning():
    module = Regression()
    with pytest.raises(tg.ConfigError, match=r"never has more than one.*Accumulate\(micro_batches=4\), and set 1"):
        fit(module, [TightGrad(), Sets(1, 4)], epochs=2)
    tight, plain = Regression(), Regression()
    fit(plain, [Sets(1, 4)], epochs=2, accumulate_grad_batches=4)
    fit(tight, [TightGrad(), Sets(1, 4)], epochs=2, accumulate_grad_batches=4)
    assert close(tight, plain)


def test_a_plan_with_another_number_than_the_schedulers_largest_is_refused():
    for number in (1, 2, 8):
        module = Regression()
        with pytest.raises(tg.ConfigError, match="the largest number of the GradientAccumulationScheduler is 4"):
            fit(module, [TightGrad(tg.Plan(tg.Accumulate(number))), GradientAccumulationScheduler({0: 1, 1: 4})])
        assert unmoved(module)
    fit(Regression(), [TightGrad(tg.Plan(tg.Accumulate(4))), GradientAccumulationScheduler({0: 1, 1: 4})])


class Manual(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        self.manual_backward(super().training_step(batch, index))
        self.optimizers().step()


def test_a_manual_step_takes_the_plans_schedule():
    tight, callback = Manual(), TightGrad(tg.Plan(tg.Accumulate(((0, 1), (4, 2)))))
    records = Records(callback)
    fit(tight, [callback, records], epochs=1)
    assert records.found == [1] * 4 + [2] * 2
    with pytest.raises(tg.ConfigError, match="every window needs a number of batches"):
        fit(Manual(), [TightGrad(tg.Plan(tg.Accumulate(None, window_weight=4)))])


def scheduled_ranks(name):
    with launched():
        modules = [Regression(), Regression()]
        own = TightGrad(tg.Plan(compress=tg.Compress(tg.codecs.Cast("float32"))) if name == "compressed" else None)
        for module, callbacks in zip(modules, ([], [own]), strict=True):
            strategy = DDPStrategy(process_group_backend="gloo")
            schedule = GradientAccumulationScheduler({0: 1, 1: 4, 2: 2})
            fit(module, [*callbacks, schedule], epochs=3, strategy=strategy, devices=2)
    return own.pipe.state.step, close(*modules)


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_the_scheduler_on_two_ranks(name):
    assert run_ranks(2, scheduled_ranks, name) == [(4 + 1 + 2, True)] * 2
