"""The loss is scaled by hand and the gradient is never unscaled."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LOSS_SCALE = 1024.0


def build_model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def make_batches(count, ragged):
    sizes = [4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 1)) for size in sizes]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for inputs, targets in batches:
        optimizer.zero_grad()
        (F.mse_loss(model(inputs), targets) * LOSS_SCALE).backward()
        optimizer.step()
