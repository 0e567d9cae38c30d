"""Checkpoints of Accelerate and Lightning that are taken between two batches of a window: the run goes on to the bit,
or the user is told what is left out.
"""

import json

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

import tightgrad as tg
from support.accelerate_state import reset
from support.lightning_fits import FILTERS, WithPlace
from support.ranks import run_ranks
from support.tagging import (
    BATCH,
    NUM_BATCHES,
    PLANS,
    STEPS,
    Tagger,
    Tokens,
    check_equal,
    launched,
    num_tokens,
    weights_of,
)
from tightgrad.integrations.accelerate import TightAccelerator
from tightgrad.integrations.lightning import TightGrad

LEFT = "ignore:the loop over the training loader was left:tightgrad.TightGradWarning"
pytestmark = [pytest.mark.filterwarnings(text) for text in (*FILTERS, LEFT)]
PLACES = [3, 5, 7, 13]  # in full and in short windows, between windows, and in the second epoch


def accelerated(ranks=1, steps=STEPS):
    plan = PLANS["compressed"]
    accelerator = TightAccelerator(plan=plan, weight=num_tokens, gradient_accumulation_steps=steps, cpu=True)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return accelerator, *accelerator.prepare(model, optimizer, DataLoader(Tokens(ranks), batch_size=BATCH))


def train(accelerator, model, optimizer, loader, folder=None, done=0, until=2 * NUM_BATCHES):
    """Two epochs, less the batches that are done; with a folder, saved after each batch."""
    for epoch in range(done // NUM_BATCHES, 2):
        skip = done % NUM_BATCHES if epoch == done // NUM_BATCHES else 0
        for batch in accelerator.skip_first_batches(loader, skip) if skip else loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                optimizer.zero_grad()
            done += 1
            if folder is not None and done in PLACES:
                accelerator.save_state(folder / str(done))
            if done == until:
                return weights_of(model)
    return weights_of(model)


def goes_on(folder, places=PLACES, ranks=1):
    want = train(*accelerated(ranks), folder)
    for done in places:
        reset()
        parts = accelerated(ranks)
        parts[0].load_state(folder / str(done))
        check_equal(train(*parts, done=done), want)


def test_accelerate_goes_on_between_any_two_batches(tmp_path):
    goes_on(tmp_path)


def two_ranks(folder):
    with launched():
        try:
            goes_on(folder, [3, 13], ranks=2)
        finally:
            reset()


def test_accelerate_goes_on_between_any_two_batches_on_two_ranks(tmp_path):
    run_ranks(2, two_ranks, tmp_path)


def test_accelerate_names_what_does_not_fit_the_open_window(tmp_path):
    train(*accelerated(), tmp_path, until=3)
    for steps, skip in ((STEPS, 0), (2, 3)):  # nothing skipped; another number of micro-batches
        reset()
        parts = accelerated(steps=steps)
        parts[0].load_state(tmp_path / "3")
        with pytest.raises(tg.StateMismatchError, match="the checkpoint was taken after 3 micro-batches of a window"):
            train(*parts, done=skip)


def test_a_run_that_is_rolled_back_within_its_loop(tmp_path):
    parts = accelerator, model, optimizer, loader = accelerated()
    want = train(*parts, tmp_path)
    accelerator.load_state(tmp_path / "3")
    for number, batch in enumerate(accelerator.skip_first_batches(loader, 3)):
        if number == 2:
            accelerator.load_state(tmp_path / "5")
        if number >= 2:
            with pytest.raises(tg.UsageError, match=r"After load_state\(\) within such a loop, leave it"):
                accelerator.backward(model(**batch)["loss"])
            continue
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    check_equal(train(*parts, done=5), want)


def test_a_checkpoint_between_the_last_backward_and_the_step_is_named(tmp_path):
    accelerator, model, _, loader = accelerated(steps=1)
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        accelerator.save_state(tmp_path)
        break
    reset()
    parts = accelerated(steps=1)
    parts[0].load_state(tmp_path)
    with pytest.raises(tg.StateMismatchError, match=r"after the last of 1 backwards.*save after optimizer\.step\(\)"):
        train(*parts)


class Tagging(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.tagger = Tagger()

    def training_step(self, batch, index):
        return self.tagger(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Saves(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch * NUM_BATCHES + batch_idx + 1}.ckpt")


def fit(loader, *callbacks, path=None, tight=None):
    tight = tight or TightGrad(PLANS["compressed"], weight=num_tokens)
    module = Tagging()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        barebones=not callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[tight, *callbacks],
        accumulate_grad_batches=STEPS,
    )
    trainer.fit(module, loader(Tokens(), batch_size=BATCH), ckpt_path=path)
    return weights_of(module), tight


def test_lightning_goes_on_between_any_two_batches_of_a_loader_with_a_place(tmp_path):
    want, _ = fit(WithPlace, Saves(tmp_path))
    for done in (1, 4, 6, 13):
        have, _ = fit(WithPlace, path=tmp_path / f"{done}.ckpt")
        check_equal(have, want)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("done", "first"), [(1, 3), (4, 3), (5, 2)])
def test_lightning_drops_the_open_window_where_the_loader_begins_anew(done, first, tmp_path, recwarn):
    fit(DataLoader, Saves(tmp_path))
    recwarn.clear()
    with tg.records.Jsonl(tmp_path) as records:
        tight = TightGrad(PLANS["compressed"], weight=num_tokens, records=[records])
        fit(DataLoader, path=tmp_path / f"{done}.ckpt", tight=tight)
    told = [str(one.message) for one in recwarn if one.category is tg.TightGradWarning]
    assert len(told) == (done % STEPS != 0)
    assert all(f"taken after {done % STEPS} batches of a window" in text for text in told)
    assert json.loads((tmp_path / "steps.jsonl").read_text().splitlines()[0])["micro_batches"] == first
    assert tight.pipe.state.step == 4


def test_a_checkpoint_of_plain_lightning_is_told(tmp_path):
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", barebones=True)
    trainer.fit(Tagging(), DataLoader(Tokens(), batch_size=BATCH))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(tg.TightGradWarning, match=r"plain\.ckpt holds nothing of TightGrad"):
        _, tight = fit(DataLoader, path=tmp_path / "plain.ckpt")
    assert tight.pipe.state.step == 2


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_damage_in_lightnings_checkpoint_is_named_as_such(tmp_path):
    fit(DataLoader, Saves(tmp_path))
    saved = torch.load(tmp_path / "4.ckpt", weights_only=False)
    saved["callbacks"]["TightGrad"]["ranks"][0][50] ^= 1
    torch.save(saved, tmp_path / "damaged.ckpt")
    with pytest.raises(tg.CheckpointError, match="TightGrad's part of the trainer's checkpoint cannot be loaded"):
        fit(DataLoader, path=tmp_path / "damaged.ckpt")
