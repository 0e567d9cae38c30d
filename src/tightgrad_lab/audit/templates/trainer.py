"""A model for Hugging Face's Trainer, to be audited: `tightgrad audit FILE.py`.

Put your own model, batches, loss and loop in place of these. `train` is run under 1, 2 and 4 local ranks (the process
group stands already, over gloo), and every gradient that its optimizer takes is compared with a float64 reference.
Keep the model small: what is checked is the loop, not the model.

The model divides its summed loss by `num_items_in_batch`, which Trainer counts over the window and all ranks, and
passes on where `forward` takes `**kwargs`. A model (or a `compute_loss`) that ignores it gives a mean of means.
"""

import tempfile

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments

ACCUMULATE = 4  # micro-batches of one optimizer step; the audit tries others. Leave it out if you do not accumulate.
MAX_NORM = 1.0  # the bound of the clip; the audit tries others. Leave it out if you do not clip.
# PRECISION = "bfloat16"  # how closely to compare: "float32" if not given, "bfloat16" or "float16" under autocast
# PARTIAL = "drop"  # if your loop means to leave out a last window that is shorter

VOCABULARY = 17


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.output = nn.Linear(12, VOCABULARY)

    def forward(self, input_ids, labels, num_items_in_batch=None, **kwargs):
        scores = self.output(torch.tanh(self.embedding(input_ids)))
        total = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum")
        return {"loss": total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)}


def build_model():
    """A fresh model, on the CPU, not wrapped."""
    return Model()


def make_batches(count, ragged):
    """`count` micro-batches; if `ragged`, of different weights (here: lengths)."""
    batches = []
    for i in range(count):
        length = 2 + (7 * i) % 13 if ragged else 8
        tokens = torch.randint(VOCABULARY, (2, 2, length))
        batches.append({"input_ids": tokens[0], "labels": tokens[1]})
    return batches


def loss(model, batch):
    """What you mean to minimise: the mean loss of one micro-batch, and the weight that it is averaged over."""
    return model(**batch)["loss"], batch["labels"].numel()


class OwnBatches(Trainer):
    """A Trainer over batches that are there already."""

    def __init__(self, batches, **options):
        super().__init__(**options, train_dataset=batches)
        self.batches = batches

    def get_train_dataloader(self):
        return self.batches


def train(model, batches):
    """Your trainer over this rank's micro-batches."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            num_train_epochs=1,
            gradient_accumulation_steps=ACCUMULATE,
            max_grad_norm=MAX_NORM,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        OwnBatches(batches, model=model, args=arguments).train()
