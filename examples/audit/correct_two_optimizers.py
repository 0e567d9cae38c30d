"""One optimizer for matrices, one for the rest, each clipped on its own."""

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4
MAX_NORM = 1.0


def build_model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def make_batches(count, ragged):
    sizes = [2 + (5 * i) % 7 if ragged else 4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 1)) for size in sizes]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    groups = [[p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim < 2]]
    optimizers = [torch.optim.SGD(groups[0], lr=0.05, momentum=0.9), torch.optim.AdamW(groups[1], lr=1e-3)]
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        samples = sum(len(inputs) for inputs, _ in window)
        for inputs, targets in window:
            (F.mse_loss(model(inputs), targets, reduction="sum") / samples).backward()
        for group, optimizer in zip(groups, optimizers, strict=True):
            nn.utils.clip_grad_norm_(group, MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
