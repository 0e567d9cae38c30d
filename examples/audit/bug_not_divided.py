"""Micro-batch losses are added up and never divided by K."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ACCUMULATE = 4


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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for i, (inputs, targets) in enumerate(batches):
        steps = (i + 1) % ACCUMULATE == 0 or i + 1 == len(batches)
        with nullcontext() if steps else model.no_sync():
            F.mse_loss(model(inputs), targets).backward()
        if steps:
            optimizer.step()
            optimizer.zero_grad()
