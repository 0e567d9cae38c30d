"""Accelerate as in its guide: backward divides by the number of accumulation steps, also in the last, shorter window."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader

ACCUMULATE = 4

VOCABULARY = 17


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.output = nn.Linear(12, VOCABULARY)

    def forward(self, tokens):
        return self.output(torch.tanh(self.embedding(tokens)))


def build_model():
    return Model()


def make_batches(count, ragged):
    batches = []
    for i in range(count):
        length = 8
        batches.append((torch.randint(VOCABULARY, (2, length)), torch.randint(VOCABULARY, (2, length))))
    return batches


def loss(model, batch):
    tokens, labels = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()), labels.numel()


def train(model, batches):
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE, cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    loader = prepare_data_loader(DataLoader(batches, batch_size=None), num_processes=1, process_index=0)
    for tokens, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()))
            optimizer.step()
            optimizer.zero_grad()
