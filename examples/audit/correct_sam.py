"""SAM: the gradient is that of a point uphill, and the step is taken from where the weights were."""

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


def backward(model, window):
    samples = sum(len(inputs) for inputs, _ in window)
    for inputs, targets in window:
        (F.mse_loss(model(inputs), targets, reduction="sum") / samples).backward()


def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        backward(model, window)
        with torch.no_grad():
            norm = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
            uphill = [0.05 * parameter.grad / norm for parameter in model.parameters()]
            for parameter, way in zip(model.parameters(), uphill, strict=True):
                parameter.add_(way)
        optimizer.zero_grad()
        backward(model, window)
        with torch.no_grad():
            for parameter, way in zip(model.parameters(), uphill, strict=True):
                parameter.sub_(way)
        optimizer.step()
        optimizer.zero_grad()
