"""A fit that is left within a window, by an error, an interrupt or a callback, and the fit after it."""

import signal

import lightning
import pytest
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, OnExceptionCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import tightgrad as tg
from support.lightning_fits import FILTERS, Regression, close, fit, rows
from support.ranks import run_ranks
from support.tagging import launched
from tightgrad.integrations.lightning import TightGrad

pytestmark = [pytest.mark.filterwarnings(text) for text in FILTERS]
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Fails(Regression):
    """Clips by itself, and raises once."""

    fails_at = 1

    def training_step(self, batch, index):
        if index == self.fails_at:
            self.fails_at = None
            raise RuntimeError("as a test wants it")
        return super().training_step(batch, index)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")


def trainer_of(*callbacks, **settings):
    usual = {"accumulate_grad_batches": 4, "enable_checkpointing": False, "max_epochs": 1}
    return lightning.Trainer(callbacks=list(callbacks), **{**usual, **QUIET, **settings})


def data():
    return DataLoader(rows(16), batch_size=2)


def test_a_fit_after_one_that_failed_is_as_if_it_had_not():
    failed, tight = Fails(), TightGrad()
    trainer = trainer_of(tight)
    with pytest.raises(RuntimeError, match="as a test wants it"):
        trainer.fit(failed, data())
    assert not {"backward", "optimizer_step", "process_dataloader"} & trainer.strategy.__dict__.keys()
    assert "clip_gradients" not in trainer.precision_plugin.__dict__
    trainer.fit(failed, data())
    whole = Fails()
    whole.fails_at = None
    trainer_of(TightGrad()).fit(whole, data())
    assert tight.pipe.state.step == 2
    assert close(failed, whole, rel=1e-12)


class Stops(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx == 5


def test_an_epoch_that_is_stopped_within_a_window_is_told():
    tight = TightGrad()
    with pytest.warns(tg.TightGradWarning, match="the epoch was left after 2 of the 4 batches .* are dropped"):
        fit(Regression(), [tight, Stops()], accumulate_grad_batches=4)
    assert tight.pipe.state.step == 1


class Interrupts(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:.*was called without a model:UserWarning")
@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available:UserWarning")
def test_a_checkpoint_of_an_interrupt_says_what_it_has_not(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    saves = OnExceptionCheckpoint(tmp_path, "left")
    try:
        with pytest.raises(SystemExit):
            trainer_of(TightGrad(), saves, Interrupts(), enable_checkpointing=True).fit(Regression(), data())
    finally:
        signal.signal(signal.SIGINT, handler)
    with pytest.warns(tg.TightGradWarning, match="goes on after 3 of the 4 batches .* no gradients of these"):
        trainer_of(TightGrad()).fit(Regression(), data(), ckpt_path=tmp_path / "left.ckpt")


class Manual(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        self.manual_backward(super().training_step(batch, index))
        self.optimizers().step()

    def validation_step(self, batch, index):
        super().training_step(batch, index)


def test_validation_within_a_window_of_manual_steps_leaves_its_gradients_alone():
    module, plain = Manual(), Regression()
    trainer = trainer_of(TightGrad(tg.Plan(tg.Accumulate(4))), accumulate_grad_batches=1, val_check_interval=3)
    trainer.fit(module, data(), data())
    fit(plain, accumulate_grad_batches=4)
    assert close(module, plain)
    assert "on_validation_model_zero_grad" not in module.__dict__


class Draws(Regression):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_a_step_that_draws_its_batches_itself_is_refused():
    with pytest.raises(
        tg.UnsupportedError, match=r"Draws.training_step takes dataloader_iter.*training_step\(self, batch"
    ):
        fit(Draws(), [TightGrad()])


def uneven():
    loader = DataLoader(rows(8 if dist.get_rank() else 14), batch_size=2)
    with launched():
        trainer = trainer_of(
            TightGrad(), strategy=DDPStrategy(process_group_backend="gloo"), devices=2, use_distributed_sampler=False
        )
        try:
            trainer.fit(Regression(), loader)
        except tg.UsageError as error:
            return str(error)
    return ""


def test_ranks_with_different_numbers_of_batches_are_told():
    assert all("the ranks have 7, 4 batches" in said for said in run_ranks(2, uneven))
