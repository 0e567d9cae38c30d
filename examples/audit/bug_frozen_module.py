"""`requires_grad = False` on a module freezes nothing."""

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4


def build_model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def make_batches(count, ragged):
    sizes = [2 + (5 * i) % 7 if ragged else 4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 1)) for size in sizes]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    model[0].requires_grad = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        samples = sum(len(inputs) for inputs, _ in window)
        for inputs, targets in window:
            (F.mse_loss(model(inputs), targets, reduction="sum") / samples).backward()
        optimizer.step()
        optimizer.zero_grad()
