"""A GAN: the discriminator steps first, then the generator, through the discriminator as it is by then."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


def build_model():
    return nn.ModuleDict(
        {
            "generator": nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 6)),
            "discriminator": nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1)),
        }
    )


def make_batches(count, ragged):
    sizes = [2 + (5 * i) % 7 if ragged else 4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randn(size, 3)) for size in sizes]


def says(judge, samples, true):
    logits = judge(samples)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(true)))


def loss(model, batch):
    """Both players' losses; each moves its own weights alone."""
    real, noise = batch
    judge = model["discriminator"]
    fake = model["generator"](noise)
    frozen = {name: parameter.detach() for name, parameter in judge.named_parameters()}
    fools = says(lambda samples: functional_call(judge, frozen, (samples,)), fake, True)
    return says(judge, real, True) + says(judge, fake.detach(), False) + fools, len(real)


def train(model, batches):
    generator, judge = model["generator"], model["discriminator"]
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-2)
    of_judge = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for real, noise in batches:
        fake = generator(noise)
        of_judge.zero_grad()
        (says(judge, real, True) + says(judge, fake.detach(), False)).backward()
        of_judge.step()
        of_generator.zero_grad()
        says(judge, fake, True).backward()
        of_generator.step()
