"""Only the backbone is given to the optimizer; the head never trains."""

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4
MAX_NORM = 1.0


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.head = nn.Linear(16, 1)

    def forward(self, inputs):
        return self.head(self.backbone(inputs))


def build_model():
    return Classifier()


def make_batches(count, ragged):
    sizes = [2 + (5 * i) % 7 if ragged else 4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 1)) for size in sizes]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.05)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        samples = sum(len(inputs) for inputs, _ in window)
        for inputs, targets in window:
            (F.mse_loss(model(inputs), targets, reduction="sum") / samples).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        model.zero_grad()
