"""The clip is given the head only."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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
    world = dist.get_world_size()
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        count = torch.tensor(float(sum(labels.numel() for _, labels in window)))
        dist.all_reduce(count)
        for i, (tokens, labels) in enumerate(window):
            with model.no_sync() if i < len(window) - 1 else nullcontext():
                total = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="sum")
                (total * world / count).backward()
        nn.utils.clip_grad_norm_(model.module.output.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
