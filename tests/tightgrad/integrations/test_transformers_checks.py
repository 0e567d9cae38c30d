"""What `TrainingArguments` may not ask for beside the plan."""

import pytest
import torch

import tightgrad as tg
from support.hf_models import Rows, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")
NORM = tg.clip.GlobalNorm(0.5)


@pytest.mark.parametrize(
    ("planned", "settings", "wanted"),
    [
        (None, {"max_grad_norm": 0.0}, None),
        (None, {"max_grad_norm": None}, None),
        (None, {"max_grad_norm": 0.5}, NORM),
        (None, {"max_grad_norm": 1.0}, tg.clip.GlobalNorm(1.0)),
        (NORM, {"max_grad_norm": 0.5}, NORM),
        (NORM, {"max_grad_norm": 0.0}, NORM),
        (NORM, {"max_grad_norm": 1.0}, NORM),
        (tg.clip.Value(0.1), {"max_grad_norm": 1.0}, tg.clip.Value(0.1)),
    ],
)
def test_the_arguments_clipping_and_the_plans(planned, settings, wanted, tmp_path):
    assert trainer_of("llama", tmp_path, tg.Plan(clip=planned), settings=settings).plan.clip == wanted


@pytest.mark.parametrize("planned", [NORM, tg.clip.Value(0.7), tg.clip.AGC(0.7), tg.clip.GlobalNorm(0.7, norm_type=1)])
def test_other_clipping_in_the_arguments_is_refused(planned, tmp_path):
    with pytest.raises(tg.ConfigError, match=r"TrainingArguments\(max_grad_norm\) clips with .*max_norm=0.7"):
        trainer_of("llama", tmp_path, tg.Plan(clip=planned), settings={"max_grad_norm": 0.7})


@pytest.mark.parametrize(
    ("optim", "instead"),
    [("lomo", "adamw_torch"), ("adalomo", "adamw_torch"), ("galore_adamw_layerwise", "galore_adamw")],
)
def test_an_optimizer_that_steps_in_backward_is_refused(optim, instead, tmp_path):
    with pytest.raises(tg.UnsupportedError, match=f'optim="{optim}" steps each.*take optim="{instead}"'):
        trainer_of("llama", tmp_path, settings={"optim": optim})


def test_an_optimizer_that_needs_a_closure_is_refused_before_weights_move(tmp_path):
    class Closing(torch.optim.LBFGS):
        pass

    trainer = trainer_of("llama", tmp_path)
    trainer.optimizer = Closing(trainer.model.parameters())
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(tg.TightGradError, match="closure"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), before, strict=True))


def test_a_schedule_that_waits_for_a_metric(tmp_path):
    wanted = {
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_loss",
        "max_steps": 6,
    }
    wanted["lr_scheduler_kwargs"] = {"patience": 0, "threshold": 1e9}
    trainer = trainer_of("llama", tmp_path, settings=wanted, eval_dataset=Rows("llama"))
    trainer.train()
    assert trainer.pipe.state.step == 6
    assert trainer.optimizer.param_groups[0]["lr"] < 1.0


def test_backward_takes_the_loss_alone(tmp_path):
    trainer = trainer_of("llama", tmp_path)
    with pytest.raises(tg.UnsupportedError, match=r"backward\(\) takes no learning_rate"):
        trainer._backward(torch.zeros(()), learning_rate=0.1)


def test_several_devices_in_one_process_are_refused(tmp_path):
    trainer = trainer_of("llama", tmp_path)
    trainer.args._n_gpu = 2
    with pytest.raises(tg.UnsupportedError, match=r"2 devices in one process.*torchrun"):
        trainer._check_supported()


def test_sync_each_batch_becomes_part_of_the_plan(tmp_path):
    def wanted():  # Trainer writes into it
        return {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}

    trainer = trainer_of("llama", tmp_path, settings=wanted())
    assert trainer.plan.accumulate == tg.Accumulate(4, sync="every", fetch="window")
    trainer.train()
    compressed = tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(8)))
    with pytest.raises(tg.ConfigError, match=r"sync_each_batch=True\) reduces.*the plan has compress"):
        trainer_of("llama", tmp_path, compressed, settings=wanted())


def plain_backward(trainer, model, inputs, own):
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return loss.detach()


def accelerators_backward(trainer, model, inputs, own):
    loss = trainer.compute_loss(model, inputs)
    trainer.accelerator.backward(loss / trainer.args.gradient_accumulation_steps)
    return loss.detach()


def a_second_backward(trainer, model, inputs, own):
    def twice(model, inputs, **kwargs):
        loss = type(trainer).compute_loss(trainer, model, inputs)
        trainer.accelerator.backward(loss)
        return loss

    trainer.compute_loss = twice
    return own(model, inputs)


def only_some(trainer, model, inputs, own):
    trainer.seen = getattr(trainer, "seen", 0) + 1
    return own(model, inputs) if trainer.seen % 2 else plain_backward(trainer, model, inputs, own)


def calls_nothing(trainer, model, inputs, own):
    return torch.zeros(())


@pytest.mark.parametrize(
    ("training_step", "seen"),
    [
        (plain_backward, "0 of the window's"),
        (calls_nothing, "0 of the window's"),
        (accelerators_backward, r"accelerator.backward\(loss\) was called outside"),
        (a_second_backward, "or twice within it"),
        (only_some, "gradients were changed from outside|of the window's"),
    ],
)
def test_a_training_step_of_ones_own_is_told_before_weights_move(training_step, seen, tmp_path):
    trainer = trainer_of("llama", tmp_path)
    own = trainer.training_step
    trainer.training_step = lambda model, inputs, items=None: training_step(trainer, model, inputs, own)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(tg.UsageError, match=f"(?s){seen}") as told:
        trainer.train()
    assert "for batch in window" not in str(told.value)
    assert training_step is only_some or "Override compute_loss" in str(told.value)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), before, strict=True))


def test_a_training_step_that_calls_the_trainers_own_trains(tmp_path):
    trainer = trainer_of("llama", tmp_path)
    own = trainer.training_step
    trainer.training_step = lambda model, inputs, items=None: own(model, inputs, items)
    trainer.train()
    assert trainer.pipe.state.step == trainer.state.global_step > 0
