"""Two models in one loop, as of a GAN: the generator's loss goes through the discriminator."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg

K = 4
PLAN = tg.Plan(accumulate=tg.Accumulate(K))
SEEDS = torch.Generator().manual_seed(3)
BATCHES = [(torch.randn(4, 6, generator=SEEDS), torch.randn(4, 4, generator=SEEDS)) for _ in range(K)]  # real, noise


def models(dtype=torch.float32):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))
    discriminator = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    return generator.to(dtype), discriminator.to(dtype)


def generator_loss(generator, discriminator, batch):
    judged = discriminator(generator(batch[1]))
    return F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))


def discriminator_loss(generator, discriminator, batch):
    real, fake = discriminator(batch[0]), discriminator(generator(batch[1]).detach())
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    return F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)


class Seen(torch.optim.SGD):
    """Remembers the gradients that it was given."""

    def step(self, closure=None):
        self.seen = torch.cat([p.grad.double().flatten() for group in self.param_groups for p in group["params"]])
        return super().step(closure)


def made():
    generator, discriminator = models()
    optimizers = Seen(generator.parameters(), lr=0.0), Seen(discriminator.parameters(), lr=0.0)
    return (
        (generator, discriminator),
        optimizers,
        [tg.attach(*pair, PLAN) for pair in zip((generator, discriminator), optimizers, strict=True)],
    )


def of_big_batch(loss, of):
    both = models(torch.float64)
    whole = tuple(torch.cat(tensors).double() for tensors in zip(*BATCHES, strict=True))
    grads = torch.autograd.grad(loss(*both, whole), list(both[of].parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def is_right(optimizers):
    for of, loss in enumerate((generator_loss, discriminator_loss)):
        torch.testing.assert_close(optimizers[of].seen, of_big_batch(loss, of), rtol=1e-5, atol=1e-7)
    return True


@pytest.mark.parametrize("first", ["generator", "discriminator"])
def test_a_loss_that_leaks_into_the_other_model_is_an_error(first):
    both, _, (of_generator, of_discriminator) = made()
    before = copy.deepcopy(both[1].state_dict())
    lines = [
        lambda batch: of_generator.backward(generator_loss(*both, batch)),
        lambda batch: of_discriminator.backward(discriminator_loss(*both, batch)),
    ]
    with pytest.raises(tg.UsageError, match=r"'0.weight'.*another TightGrad pipeline.*requires_grad_\(False\)"):  # noqa: PT012
        for one, other in zip(of_generator.windows(BATCHES), of_discriminator.windows(BATCHES), strict=True):
            for batch, _ in zip(one, other, strict=True):
                for line in lines if first == "generator" else reversed(lines):
                    line(batch)
    assert all(torch.equal(both[1].state_dict()[name], before[name]) for name in before)


def test_with_the_other_model_frozen_meanwhile_both_are_right():
    both, optimizers, (of_generator, of_discriminator) = made()
    for one, other in zip(of_generator.windows(BATCHES), of_discriminator.windows(BATCHES), strict=True):
        for batch, _ in zip(one, other, strict=True):
            of_discriminator.backward(discriminator_loss(*both, batch))
            both[1].requires_grad_(False)
            of_generator.backward(generator_loss(*both, batch))
            both[1].requires_grad_(True)
        of_discriminator.step()
        of_generator.step()
    assert is_right(optimizers)


def test_with_a_window_each_both_are_right():
    both, optimizers, (of_generator, of_discriminator) = made()
    for _ in range(2):
        for window in of_discriminator.windows(BATCHES):
            for batch in window:
                of_discriminator.backward(discriminator_loss(*both, batch))
            of_discriminator.step()
        for window in of_generator.windows(BATCHES):
            for batch in window:
                of_generator.backward(generator_loss(*both, batch))
            of_generator.step()
        assert is_right(optimizers)


def test_a_parameter_unfrozen_in_mid_window_is_named():
    model = models()[0]
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, PLAN)
    before = copy.deepcopy(model.state_dict())
    for window in pipe.windows([batch[1] for batch in BATCHES]):
        for noise in window:
            pipe.backward(model(noise).square().mean())
            model[0].requires_grad_(True)
        with pytest.raises(tg.UsageError, match=r"left out '0.weight', '0.bias'.*attach\(\) again"):
            pipe.step()
        pipe.abandon()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    again = tg.attach(model, optimizer, PLAN)
    for window in again.windows([batch[1] for batch in BATCHES]):
        for noise in window:
            again.backward(model(noise).square().mean())
        model[0].requires_grad_(False)  # all micro-batches have had their backward
        assert not again.step().skipped
        model[0].requires_grad_(True)


@pytest.mark.parametrize("held", ["copies", "copies and the rest"])
def test_an_optimizer_over_float32_copies_is_refused(held):
    model = models(torch.bfloat16)[0]
    copies = [nn.Parameter(parameter.detach().float()) for parameter in model.parameters()]
    if held == "copies and the rest":
        copies[-1] = list(model.parameters())[-1]
    with pytest.raises(tg.UsageError, match=r"float32 copies.*torch\.autocast"):
        tg.attach(model, torch.optim.SGD(copies, lr=0.1), PLAN)
