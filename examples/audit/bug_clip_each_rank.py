"""Each rank clips its own gradient, and the clipped ones are averaged."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

MAX_NORM = 1.0


def build_model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def make_batches(count, ragged):
    sizes = [4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 1)) for size in sizes]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        optimizer.step()
