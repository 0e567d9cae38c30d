"""Pipelines that fetch one micro-batch at a time, and batches that do not weigh the same."""

import torch

import tightgrad as tg
from support.training import linear

SIZES = (4, 7, 2, 5, 3, 6, 1, 8)


def ragged(num=8, rank=0):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(size, 3, generator=generator) for size in SIZES[:num]]


def make(fetch="batch", k=3, model=None, collective=None, weight=None, **plan):
    model = model or linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(
        model,
        optimizer,
        tg.Plan(accumulate=tg.Accumulate(k, fetch=fetch), **plan),
        collective=collective,
        weight=weight,
    )
    return model, pipe
