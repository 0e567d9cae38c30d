"""A `TightTrainer` that is stopped or saved within a window, and ranks with different numbers of batches."""

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

import tightgrad as tg
from support.accelerate_state import reset
from support.ranks import run_ranks
from support.tagging import BATCH, PLANS, STEPS, Tagger, Tokens, check_equal, launched, num_tokens, raw_loop, weights_of
from tightgrad.integrations.transformers import TightTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")


class InOrder(TightTrainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def make(plan, folder, callbacks=(), data=None, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=STEPS,
        num_train_epochs=2,
        lr_scheduler_type="constant",
        max_grad_norm=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        **settings,
    )
    model = Tagger()
    return InOrder(
        plan=plan,
        weight=num_tokens,
        model=model,
        args=arguments,
        train_dataset=data or Tokens(),
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.5), None),
        callbacks=list(callbacks),
    )


class Stops(TrainerCallback):
    """Saves and stops as Trainer's own does after SIGTERM (`enable_jit_checkpoint`)."""

    def __init__(self, event, count):
        setattr(self, event, self.come)
        self.left, self.trainer = count, None

    def come(self, args, state, control, **kwargs):
        self.left -= 1
        if self.left == 0:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
            control.should_training_stop = True
        return control


@pytest.mark.filterwarnings("ignore:a callback has stopped the training:tightgrad.TightGradWarning")
@pytest.mark.parametrize(
    ("event", "count", "step"),
    [("on_substep_end", 1, 0), ("on_substep_end", 4, 1), ("on_pre_optimizer_step", 2, 1), ("on_step_begin", 2, 1)],
)
def test_what_is_saved_within_a_window_goes_on_with_that_windows_first_batch(event, count, step, tmp_path):
    want, _, _ = raw_loop(PLANS["compressed"], epochs=2)
    stops = Stops(event, count)
    stops.trainer = make(PLANS["compressed"], tmp_path, [stops])
    stops.trainer.train()
    reset()
    trainer = make(PLANS["compressed"], tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert trainer.pipe.state.step == 4
    check_equal(weights_of(trainer.model), want)


def test_a_training_that_ends_within_a_window_is_told(tmp_path):
    stops = Stops("on_substep_end", 2)
    stops.trainer = trainer = make(PLANS["clipped"], tmp_path, [stops])
    with pytest.warns(tg.TightGradWarning, match="stopped the training after 2 of the 4 batches .* are dropped"):
        trainer.train()
    assert trainer.loop.window is None


def uneven(folder, name, batches):
    compressed = tg.Compress(tg.codecs.Cast("float32"))
    plan = tg.Plan() if name == "wrapper" else tg.Plan(compress=compressed)
    data = torch.utils.data.Subset(Tokens(2), range(batches * BATCH))
    with launched():
        try:
            trainer = make(plan, folder, data=data, accelerator_config={"even_batches": False})
            trainer.train()
            return trainer.pipe.state.step
        except tg.UsageError as error:
            return str(error)
        finally:
            reset()


@pytest.mark.parametrize(
    ("name", "batches", "found"),
    [
        ("wrapper", 9, "the ranks have 5, 4 batches"),
        ("wrapper", 11, "the ranks have 6, 5 batches"),
        ("compressed", 9, "the ranks have 5, 4 batches"),
        ("compressed", 11, 4),
    ],
)
def test_ranks_whose_loaders_end_at_different_steps_are_told(name, batches, found, tmp_path):
    results = run_ranks(2, uneven, str(tmp_path), name, batches)
    assert all(result == found if isinstance(found, int) else found in result for result in results)
