"""The same with TightGrad: three lines."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg

ACCUMULATE = 4
MAX_NORM = 1.0

VOCABULARY = 17


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.hidden = nn.Linear(12, 12)
        self.output = nn.Linear(12, VOCABULARY)

    def forward(self, tokens):
        return self.output(torch.tanh(self.hidden(self.embedding(tokens))))


def build_model():
    return LanguageModel()


def make_batches(count, ragged):
    batches = []
    for i in range(count):
        length = 2 + (7 * i) % 13 if ragged else 8
        batches.append((torch.randint(VOCABULARY, (2, length)), torch.randint(VOCABULARY, (2, length))))
    return batches


def loss(model, batch):
    tokens, labels = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()), labels.numel()


def train(model, batches):
    model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plan = tg.Plan(accumulate=tg.Accumulate(ACCUMULATE), clip=tg.clip.GlobalNorm(MAX_NORM))
    pipe = tg.attach(model, optimizer, plan, weight=lambda batch: batch[1].numel())
    for window in pipe.windows(batches):
        for tokens, labels in window:
            pipe.backward(F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()))
        pipe.step()
