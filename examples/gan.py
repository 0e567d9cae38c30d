"""A GAN: two models, two optimizers, two pipelines. Neither one's loss leaks into the other's gradients.

The generator learns the points of a circle. Each step of each player is over two batches.

$ python examples/gan.py
judge's loss 1.204, generator's loss 1.005 after 500 steps each
samples are 0.068 off the circle, in 8 of 8 sectors
"""

import torch
from torch import nn
from torch.nn import functional as F

import tightgrad as tg

STEPS, SECTORS = 500, 8
torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(8, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 2))
judge = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
optimizer_j = torch.optim.Adam(judge.parameters(), lr=3e-3, betas=(0.0, 0.9))


def says(samples, label):
    logits = judge(samples)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def batches(count):
    """Points of a circle, and noise."""
    for _ in range(count):
        angles = 2 * torch.pi * torch.rand(64)
        yield torch.stack([angles.cos(), angles.sin()], dim=1), torch.randn(64, 8)


plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=2), clip=tg.clip.GlobalNorm(10.0))
pipe_g = tg.attach(generator, optimizer_g, plan)
pipe_j = tg.attach(judge, optimizer_j, plan)
for window in pipe_j.windows(batches(2 * STEPS)):  # the judge's step, over two batches
    seen = []
    for real, noise in window:
        pipe_j.backward(says(real, 1.0) + says(generator(noise).detach(), 0.0))
        seen.append(noise)
    record_j = pipe_j.step()

    judge.requires_grad_(False)  # the generator's step, over the same two
    for window_g in pipe_g.windows(seen):
        for noise in window_g:
            pipe_g.backward(says(generator(noise), 1.0))
        record_g = pipe_g.step()
    judge.requires_grad_(True)

with torch.no_grad():
    x, y = generator(torch.randn(2000, 8)).T
sectors = (torch.atan2(y, x) / (2 * torch.pi) * SECTORS).floor().unique()
print(f"judge's loss {record_j.loss:.3f}, generator's loss {record_g.loss:.3f} after {pipe_g.state.step} steps each")
print(f"samples are {(torch.hypot(x, y) - 1).abs().mean():.3f} off the circle, in {len(sectors)} of {SECTORS} sectors")
