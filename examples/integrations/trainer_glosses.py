"""Hugging Face Trainer: `TightTrainer` in the place of `Trainer`; accumulation and clipping stay in the arguments.

$ python examples/integrations/trainer_glosses.py
accuracy 0.400 after 126 steps
loss 0.706; 0 bytes a step, for a gradient of 2365232 bytes

$ torchrun --nproc-per-node 2 examples/integrations/trainer_glosses.py
accuracy 0.400 after 64 steps
loss 0.709; 602330 bytes a step, for a gradient of 2365232 bytes
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import tightgrad as tg
from tightgrad.integrations.transformers import TightTrainer  # 1
from tightgrad_lab.cases import load_case

torch.manual_seed(0)
case = load_case("text")
train, test = case.load()


def rows(samples, count):
    """The first texts, as Trainer takes them."""
    tokens, *_, labels = case.batch(samples, torch.arange(count))
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]


data, held_out = rows(train, 2000), rows(test, 500)
size = max(int(row["input_ids"].max()) for row in data + held_out) + 1
config = BertConfig(
    vocab_size=size,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=len(data[0]["input_ids"]),
    num_labels=12,
)
plan = tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(bits=8), feedback=tg.ErrorFeedback()))  # 2
arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=16,
    gradient_accumulation_steps=2,
    max_grad_norm=1.0,
    learning_rate=2e-3,
    num_train_epochs=2,
    use_cpu=True,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
)
trainer = TightTrainer(  # 3
    plan=plan, model=BertForSequenceClassification(config), args=arguments, train_dataset=data
)
trainer.train()

predicted = trainer.predict(held_out)
right = (predicted.predictions.argmax(axis=1) == predicted.label_ids).mean()
if trainer.is_world_process_zero():
    record, size = trainer.loop.record, 4 * sum(parameter.numel() for parameter in trainer.model.parameters())
    print(f"accuracy {right:.3f} after {trainer.pipe.state.step} steps")
    print(f"loss {record.loss:.3f}; {record.wire_bytes} bytes a step, for a gradient of {size} bytes")
