"""`TightTrainer`: Trainer's own loop gives what the raw loop gives, also for a loss that ignores the tokens."""

import pytest
import torch
from transformers import TrainingArguments

import tightgrad as tg
from support.accelerate_state import reset
from support.ranks import run_ranks
from support.tagging import BATCH, PLANS, STEPS, Tagger, Tokens, check_equal, launched, num_tokens, raw_loop, weights_of
from tightgrad.integrations.transformers import TightTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")


class InOrder(TightTrainer):
    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def make(plan, folder, ranks=1, epochs=1, **arguments):
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=STEPS,
        num_train_epochs=epochs,
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.1,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        save_strategy=arguments.pop("save_strategy", "no"),
        **arguments,
    )
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return InOrder(
        plan=plan,
        weight=num_tokens,
        model=model,
        args=settings,
        train_dataset=Tokens(ranks),
        optimizers=(optimizer, None),
    )


@pytest.mark.parametrize("name", PLANS)
def test_same_as_the_raw_loop(name, tmp_path):
    weights, _, records = raw_loop(PLANS[name], epochs=2)
    trainer = make(PLANS[name], tmp_path, epochs=2)
    trainer.train()
    check_equal(weights_of(trainer.model), weights)
    logged = [float(row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]
    assert logged == [pytest.approx(record.grad_norm, rel=1e-6) for record in records]


def test_the_arguments_clip_where_the_plan_does_not(tmp_path):
    trainer = make(tg.Plan(), tmp_path)
    assert trainer.plan == tg.Plan(accumulate=tg.Accumulate(STEPS, fetch="window"), clip=tg.clip.GlobalNorm(0.1))


def test_logs_the_mean_over_the_windows_tokens(tmp_path):
    _, losses, records = raw_loop(tg.Plan(clip=tg.clip.GlobalNorm(0.1)))
    trainer = make(tg.Plan(), tmp_path)
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    tokens = (Tokens().labels != -100).sum(1).view(-1, BATCH).sum(1).tolist()
    first = sum(loss * count for loss, count in zip(losses[:STEPS], tokens, strict=False)) / records[0].weight
    assert logged[0] == pytest.approx(first, rel=1e-5)


def two_ranks(folder, name):
    weights, _, _ = raw_loop(PLANS[name])
    with launched():
        try:
            trainer = make(PLANS[name], folder, ranks=2)
            assert trainer.args.world_size == 2
            trainer.train()
            traffic = trainer.pipe.adapter.collective.traffic.nbytes
        finally:
            reset()
    check_equal(weights_of(trainer.model), weights)
    return traffic


def test_same_as_the_raw_loop_on_two_ranks(tmp_path):
    dense, compressed = (run_ranks(2, two_ranks, str(tmp_path), name) for name in PLANS)
    assert 0 < compressed[0] < dense[0]


def test_resumed_as_if_never_stopped(tmp_path):
    weights, _, _ = raw_loop(PLANS["compressed"], epochs=2)
    make(PLANS["compressed"], tmp_path, save_strategy="epoch").train()
    reset()
    trainer = make(PLANS["compressed"], tmp_path, epochs=2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.pipe.state.step == 4
    check_equal(weights_of(trainer.model), weights)


def test_another_number_of_steps_is_refused(tmp_path):
    with pytest.raises(tg.ConfigError, match="gradient_accumulation_steps is 4"):
        make(tg.Plan(accumulate=tg.Accumulate(micro_batches=2)), tmp_path)
