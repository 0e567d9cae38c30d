"""The clip runs after every backward, on what has been added up so far."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ACCUMULATE = 4
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
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        for i, (inputs, targets) in enumerate(window):
            with model.no_sync() if i < len(window) - 1 else nullcontext():
                (F.mse_loss(model(inputs), targets) / len(window)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
