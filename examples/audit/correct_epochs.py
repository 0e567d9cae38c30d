"""Two epochs; what is left over at the end of each has a step of its own."""

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4
EPOCHS = 2


def build_model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def make_batches(count, ragged):
    return [(torch.randn(4, 6), torch.randn(4, 1)) for _ in range(count)]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(EPOCHS):
        for start in range(0, len(batches), ACCUMULATE):
            window = batches[start : start + ACCUMULATE]
            for inputs, targets in window:
                (F.mse_loss(model(inputs), targets) / len(window)).backward()
            optimizer.step()
            optimizer.zero_grad()
