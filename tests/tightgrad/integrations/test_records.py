"""The integrations hand every step's record to the writers that they are given."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments

import tightgrad as tg
from support.lightning_fits import FILTERS, Regression, fit
from support.tagging import BATCH, STEPS, Tagger, Tokens, num_tokens
from tightgrad.integrations.accelerate import TightAccelerator
from tightgrad.integrations.lightning import TightGrad
from tightgrad.integrations.transformers import TightTrainer

PLAN = tg.Plan(clip=tg.clip.GlobalNorm(0.1))
pytestmark = [pytest.mark.filterwarnings(text) for text in FILTERS]


def with_accelerate(writer, folder):
    accelerator = TightAccelerator(
        plan=PLAN, weight=num_tokens, gradient_accumulation_steps=STEPS, cpu=True, records=[writer]
    )
    model = Tagger()
    parts = model, torch.optim.SGD(model.parameters(), lr=0.5), DataLoader(Tokens(1), batch_size=BATCH)
    model, optimizer, loader = accelerator.prepare(*parts)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    return accelerator.loop.record


def with_lightning(writer, folder):
    callback = TightGrad(PLAN, records=[writer])
    fit(Regression(), [callback], accumulate_grad_batches=4)
    return callback.loop.record


def with_trainer(writer, folder):
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=STEPS,
        num_train_epochs=1,
        max_grad_norm=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = TightTrainer(
        plan=PLAN, weight=num_tokens, records=[writer], model=Tagger(), args=settings, train_dataset=Tokens(1)
    )
    trainer.train()
    return trainer.loop.record


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning")
@pytest.mark.parametrize("trained", [with_accelerate, with_lightning, with_trainer], ids=lambda body: body.__name__[5:])
def test_every_step_is_written(trained, tmp_path: Path) -> None:
    last = trained(tg.records.Jsonl(tmp_path / "run"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(last.step + 1))
    assert len(lines) > 1
    assert lines[-1] == json.loads(json.dumps(last.to_dict()))
