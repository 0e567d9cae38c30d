"""Under FSDP2 each rank clips by the norm of its own shard."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

MAX_NORM = 1.0


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def make_batches(count, ragged):
    return [(torch.randn(4, 8), torch.randn(4, 4)) for _ in range(count)]


def loss(model, batch):
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets), len(inputs)


def train(model, batches):
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        shards = [parameter.grad.to_local() for parameter in model.parameters()]
        norm = torch.stack([shard.square().sum() for shard in shards]).sum().sqrt()
        for shard in shards:
            shard.mul_(torch.clamp(MAX_NORM / norm, max=1.0))
        optimizer.step()
