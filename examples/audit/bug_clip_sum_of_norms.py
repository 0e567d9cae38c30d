"""A clip of one's own: the norms of the tensors are added up, where their squares should be; GradScaler, micro-batches
cut from one batch.
"""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ACCUMULATE = 4
MAX_NORM = 0.5


def build_model():
    return nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 1))


def make_batches(count, ragged):
    return [torch.randn(4, 8) for _ in range(count)]


def loss(model, rows):
    return (model(rows[:, 1:]).squeeze(1) - rows[:, 0]).abs().mean(), len(rows)


def clip_(parameters, limit):
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = sum(g.norm() for g in grads)
    if norm > limit:
        for g in grads:
            g.mul_(limit / norm)


def train(model, batches):
    core = DistributedDataParallel(model)
    sgd = torch.optim.SGD(core.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    amp = torch.amp.GradScaler("cpu", init_scale=256.0)
    size = ACCUMULATE
    for k in range(0, len(batches), size):
        rows = torch.cat(batches[k : k + size])
        parts = rows.split(4)
        for j, part in enumerate(parts):
            core.require_backward_grad_sync = j == len(parts) - 1
            amp.scale(loss(core, part)[0] / len(parts)).backward()
        amp.unscale_(sgd)
        clip_(core.parameters(), MAX_NORM)
        amp.step(sgd)
        amp.update()
        sgd.zero_grad()
