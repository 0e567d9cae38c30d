"""The gradient is scaled to the bound at every step, also where it is shorter."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

MAX_NORM = 1.0


def build_model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def make_batches(count, ragged):
    return [(torch.randn(4, 6), torch.randn(4, 1)) for _ in range(count)]


def loss(model, batch):
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-8)
    for inputs, targets in batches:
        optimizer.zero_grad()
        nn.functional.mse_loss(ddp(inputs), targets).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in ddp.parameters()])
        for p in ddp.parameters():
            p.grad *= MAX_NORM / norm
        optimizer.step()
