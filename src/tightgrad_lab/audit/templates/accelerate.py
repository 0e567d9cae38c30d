"""A training loop with Accelerate, to be audited: `tightgrad audit FILE.py`.

Put your own model, batches, loss and loop in place of these. `train` is run under 1, 2 and 4 local ranks (the process
group stands already, over gloo), and every gradient that its optimizer takes is compared with a float64 reference.
Keep the model small: what is checked is the loop, not the model.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

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


def train(model, batches):
    """Your loop over this rank's micro-batches."""
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE, cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        count = accelerator.reduce(torch.tensor(float(sum(labels.numel() for _, labels in window))))
        for i, (tokens, labels) in enumerate(window):
            with accelerator.no_sync(model) if i < len(window) - 1 else nullcontext():
                total = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="sum")
                # backward() divides by the number of accumulation steps, and DDP by that of processes.
                accelerator.backward(total * accelerator.num_processes * ACCUMULATE / count)
        accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
