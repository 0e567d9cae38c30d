"""What is left over at the end of an epoch stays in the gradient of the next one's first window."""

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4
EPOCHS = 2
PARTIAL = "drop"


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
        for step, (inputs, targets) in enumerate(batches):
            (F.mse_loss(model(inputs), targets) / ACCUMULATE).backward()
            if (step + 1) % ACCUMULATE == 0:
                optimizer.step()
                optimizer.zero_grad()
