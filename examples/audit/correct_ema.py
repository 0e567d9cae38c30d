"""A copy of the weights follows them; it is part of the model, and no optimizer holds it."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4


class WithAverage(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.average = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, inputs):
        return self.net(inputs)


def build_model():
    return WithAverage()


def make_batches(count, ragged):
    sizes = [2 + (5 * i) % 7 if ragged else 4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 1)) for size in sizes]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.05)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        samples = sum(len(inputs) for inputs, _ in window)
        for inputs, targets in window:
            (F.mse_loss(model(inputs), targets, reduction="sum") / samples).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(model.average.parameters(), model.net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
