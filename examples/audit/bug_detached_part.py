"""A detach cuts the embedding off."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel


VOCABULARY = 17


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.hidden = nn.Linear(12, 12)
        self.output = nn.Linear(12, VOCABULARY)

    def forward(self, tokens):
        return self.output(torch.tanh(self.hidden(self.embedding(tokens))))

    def from_features(self, features):
        return self.output(torch.tanh(self.hidden(features)))


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
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    wrapped.module.forward = lambda tokens: model.from_features(model.embedding(tokens).detach())
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    for tokens, labels in batches:
        count = torch.tensor(float(labels.numel()))
        dist.all_reduce(count)
        optimizer.zero_grad()
        total = F.cross_entropy(wrapped(tokens).flatten(0, 1), labels.flatten(), reduction="sum")
        (total * dist.get_world_size() / count).backward()
        optimizer.step()
