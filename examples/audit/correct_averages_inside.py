"""The optimizer averages over ranks inside its own step, as nanochat's does."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4


def build_model():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))


def make_batches(count, ragged):
    return [(torch.randn(4, 6), torch.randn(4, 1)) for _ in range(count)]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


class DistributedSGD(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                average = parameter.grad.clone()
                dist.all_reduce(average)
                parameter.data.add_(average, alpha=-group["lr"] / dist.get_world_size())


def train(model, batches):
    optimizer = DistributedSGD(model.parameters(), lr=0.05)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        for inputs, targets in window:
            (F.mse_loss(model(inputs), targets) / len(window)).backward()
        optimizer.step()
        optimizer.zero_grad()
