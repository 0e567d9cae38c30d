"""The loss is computed on the bare module inside DDP, which then reduces nothing."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def build_model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def make_batches(count, ragged):
    sizes = [4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 1)) for size in sizes]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        optimizer.step()
