"""InfoNCE is accumulated like any mean: each micro-batch has only its own negatives."""

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4


def build_model():
    return nn.Linear(6, 8)


def make_batches(count, ragged):
    return [torch.randn(4 + 2 * (i % 3) if ragged else 6, 2, 6) for i in range(count)]


def loss(model, pairs):
    left, right = F.normalize(model(pairs), dim=-1).unbind(1)
    return F.cross_entropy(left @ right.T / 0.1, torch.arange(len(pairs))), len(pairs)


def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        total = sum(map(len, window))
        for pairs in window:
            (loss(model, pairs)[0] * len(pairs) / total).backward()
        optimizer.step()
        optimizer.zero_grad()
