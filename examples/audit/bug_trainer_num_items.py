"""A model for Hugging Face's Trainer that does not take num_items_in_batch: each micro-batch's mean counts the same."""

import tempfile

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments

ACCUMULATE = 4

VOCABULARY = 17


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.output = nn.Linear(12, VOCABULARY)

    def forward(self, input_ids, labels):
        scores = self.output(torch.tanh(self.embedding(input_ids)))
        return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten())}


def build_model():
    return Model()


def make_batches(count, ragged):
    batches = []
    for i in range(count):
        length = 2 + (7 * i) % 13 if ragged else 8
        tokens = torch.randint(VOCABULARY, (2, 2, length))
        batches.append({"input_ids": tokens[0], "labels": tokens[1]})
    return batches


def loss(model, batch):
    return model(**batch)["loss"], batch["labels"].numel()


class OwnBatches(Trainer):
    def __init__(self, batches, **options):
        super().__init__(**options, train_dataset=batches)
        self.batches = batches

    def get_train_dataloader(self):
        return self.batches


def train(model, batches):
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            num_train_epochs=1,
            gradient_accumulation_steps=ACCUMULATE,
            max_grad_norm=0.0,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        OwnBatches(batches, model=model, args=arguments).train()
