"""Ranks average each micro-batch's gradient before it is added, but only for the last one."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    parameters = list(model.parameters())
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        sums = [torch.zeros_like(parameter) for parameter in parameters]
        for i, (inputs, targets) in enumerate(window):
            found = torch.autograd.grad(F.mse_loss(model(inputs), targets) / len(window), parameters)
            for held, gradient in zip(sums, found):
                if i == len(window) - 1:
                    dist.all_reduce(gradient)
                    gradient /= dist.get_world_size()
                held += gradient
        for parameter, held in zip(parameters, sums):
            parameter.grad = held
        optimizer.step()
