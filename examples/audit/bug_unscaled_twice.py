"""The gradients are divided by the loss scale by hand, and the scaler does it again."""

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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        samples = sum(len(inputs) for inputs, _ in window)
        for inputs, targets in window:
            scaler.scale(F.mse_loss(model(inputs), targets, reduction="sum") / samples).backward()
        for parameter in model.parameters():
            parameter.grad.div_(scaler.get_scale())
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
