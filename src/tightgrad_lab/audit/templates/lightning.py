"""A module for Lightning, to be audited: `tightgrad audit FILE.py`.

Put your own model, batches, loss and loop in place of these. `train` is run under 1, 2 and 4 local ranks (the process
group stands already, over gloo), and every gradient that its optimizer takes is compared with a float64 reference.
Keep the model small: what is checked is the loop, not the model.

Lightning divides every loss by `accumulate_grad_batches`, also in a shorter last window, and every micro-batch counts
the same. The callback below, of TightGrad, makes it exact; leave it out to see what the audit says.
"""

import logging
import warnings

import lightning
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from tightgrad.integrations.lightning import TightGrad

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

    def forward(self, tokens):
        return self.output(torch.tanh(self.embedding(tokens)))


def build_model():
    """A fresh model, on the CPU, not wrapped."""
    return Model()


def make_batches(count, ragged):
    """`count` micro-batches; if `ragged`, of different weights (here: lengths)."""
    batches = []
    for i in range(count):
        length = 2 + (7 * i) % 13 if ragged else 8
        batches.append((torch.randint(VOCABULARY, (2, length)), torch.randint(VOCABULARY, (2, length))))
    return batches


def loss(model, batch):
    """What you mean to minimise: the mean loss of one micro-batch, and the weight that it is averaged over."""
    tokens, labels = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()), labels.numel()


class Module(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        return loss(self.model, batch)[0]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(model, batches):
    """Your trainer over this rank's micro-batches."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=False,
        accumulate_grad_batches=ACCUMULATE,
        gradient_clip_val=MAX_NORM,
        callbacks=[TightGrad(weight=lambda batch: batch[1].numel())],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(model), DataLoader(batches, batch_size=None))
