"""A GradScaler, unscaled before the clip."""

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
    sizes = [1 + (5 * i) % 7 if ragged else 4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 1)) for size in sizes]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        samples = torch.tensor([float(sum(len(inputs) for inputs, _ in window))])
        dist.all_reduce(samples)
        for i, (inputs, targets) in enumerate(window):
            with model.no_sync() if i < len(window) - 1 else nullcontext():
                error = F.mse_loss(model(inputs), targets, reduction="sum") * dist.get_world_size() / samples.item()
                scaler.scale(error).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
