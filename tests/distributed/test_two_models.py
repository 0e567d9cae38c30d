"""The two models of a GAN under DistributedDataParallel: a window each, the other model frozen meanwhile and called
without its wrapper, whose forward may wait for other ranks.
"""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks

K, RATE = 2, 0.1
SIZES = ((4, 1, 3, 4), (2, 5, 3))  # the second rank ends first


def models():
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))
    return generator.double(), nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).double()


def data(rank):
    seeds = torch.Generator().manual_seed(rank)
    return [tuple(torch.randn(n, m, generator=seeds).double() for m in (6, 4)) for n in SIZES[rank]]


def judge(discriminator, samples, label):
    logits = discriminator(samples)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def discriminator_loss(generator, discriminator, batch):
    return judge(discriminator, batch[0], 1.0) + judge(discriminator, generator(batch[1]).detach(), 0.0)


def generator_loss(generator, discriminator, batch):
    return judge(discriminator, generator(batch[1]), 1.0)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(settings, keeps):
    generator, discriminator = both = [DistributedDataParallel(model) for model in models()]
    plan = tg.Plan(accumulate=tg.Accumulate(K), **settings)
    of_generator, of_discriminator = (
        tg.attach(model, torch.optim.SGD(model.parameters(), lr=RATE), plan) for model in both
    )
    for window in of_discriminator.windows(data(dist.get_rank())):
        seen = []
        for batch in window:
            of_discriminator.backward(discriminator_loss(generator.module, discriminator, batch))
            if keeps == "all":
                seen.append(batch)
            elif keeps == "tensors":
                seen.append(list(batch))
            elif window.weights[len(seen)]["loss"]:  # not one that is repeated for others
                seen.append(batch)
        of_discriminator.step()
        discriminator.requires_grad_(False)
        for again in of_generator.windows(seen):
            for batch in again:
                of_generator.backward(generator_loss(generator, discriminator.module, batch))
            of_generator.step()
        discriminator.requires_grad_(True)
    return flat(generator), flat(discriminator)


def by_hand():
    both = models()
    rows = [data(rank) for rank in range(2)]
    for start in (0, K):
        window = [batch for row in rows for batch in row[start : start + K]]
        whole = tuple(torch.cat(parts) for parts in zip(*window, strict=True))
        for model, loss in ((both[1], discriminator_loss), (both[0], generator_loss)):
            grads = torch.autograd.grad(loss(*both, whole), list(model.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    parameter -= RATE * grad
    return flat(both[0]), flat(both[1])


@pytest.mark.parametrize("keeps", ["what counts", "all", "tensors"])
@pytest.mark.parametrize("compress", [None, tg.Compress(tg.codecs.Cast("float32"))])
def test_both_are_those_of_the_big_batch_of_both_ranks(compress, keeps):
    found = run_ranks(2, train, {"compress": compress}, keeps)
    assert all(map(torch.equal, *found))
    for ours, theirs in zip(found[0], by_hand(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 if compress else 1e-12)
