"""Loops that are right and unusual, each a script of its own: `python unusual.py NAME`."""

import copy
import os
import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

K, STEPS = 3, 4
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
if RANKS > 1:
    dist.init_process_group("gloo")


def wrapped(model):
    return DistributedDataParallel(model) if RANKS > 1 else model


def quiet(model, last):
    return nullcontext() if last or RANKS == 1 else model.no_sync()


def net(out=1):
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, out))
    torch.manual_seed(RANK + 1)
    return found


def data(size=4):
    return torch.randn(size, 6), torch.randn(size, 1)


def total(count):
    found = torch.tensor(float(count))
    if RANKS > 1:
        dist.all_reduce(found)
    return found


def vae_sum():
    """One backward a step, of a sum over the batch."""
    model = wrapped(net(6))
    optimizer = torch.optim.Adam(model.parameters())
    for size in (4, 4, 4, 4):
        inputs, _ = data(size)
        optimizer.zero_grad()
        F.mse_loss(model(inputs), inputs, reduction="sum").backward()
        optimizer.step()


def multi_task():
    """Two losses, one weighed by a half; both accumulated."""
    model = wrapped(net(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        for i in range(2):
            inputs, targets = data()
            with quiet(model, i == 1):
                out = model(inputs)
                main = F.cross_entropy(out[:, :3], torch.randint(3, (4,)))
                extra = F.mse_loss(out[:, 3:], targets)
                ((main + 0.5 * extra) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()


def cached_representations():
    """A contrastive loss of the whole window, once for each part that is computed anew with a graph."""
    torch.manual_seed(RANK + 1)
    model = net(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        inputs, others = torch.randn(4 * K, 6), F.normalize(torch.randn(4 * K, 4), dim=1)
        with torch.no_grad():
            cached = list(model(inputs).split(4))
        for number, part in enumerate(inputs.split(4)):
            found = torch.cat([*cached[:number], model(part), *cached[number + 1 :]])
            F.cross_entropy(5 * F.normalize(found, dim=1) @ others.T, torch.arange(4 * K)).backward()
        optimizer.step()
        optimizer.zero_grad()


def sequence_means():
    """Each sequence counts the same, whatever its length (as in GRPO)."""
    model = wrapped(net(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        for i in range(K):
            lengths = torch.randint(2, 9, (3,))
            mask = torch.arange(9) < lengths[:, None]
            with quiet(model, i == K - 1):
                each = F.cross_entropy(model(torch.randn(27, 6)), torch.randint(5, (27,)), reduction="none").view(3, 9)
                (((each * mask).sum(1) / mask.sum(1)).mean() / K).backward()
        optimizer.step()
        optimizer.zero_grad()


def summed(head, hidden):
    return F.cross_entropy(head(hidden), torch.zeros(len(hidden), dtype=torch.long), reduction="sum")


def chunked_loss():
    """The loss is summed in chunks under activation checkpointing, and divided by the tokens of all ranks."""
    model = wrapped(net(6))
    head = nn.Linear(6, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        batches = [torch.randn(int(n), 6) for n in torch.randint(4, 12, (K,))]
        count = total(sum(map(len, batches)))
        for i, inputs in enumerate(batches):
            with quiet(model, i == K - 1):
                hidden = model(inputs)
                loss = 0.0
                for part in hidden.chunk(2):
                    loss = loss + checkpoint(summed, head, part, use_reentrant=False)
                (loss * RANKS / count).backward()
        optimizer.step()
        optimizer.zero_grad()


def gradient_penalty():
    """WGAN-GP: a gradient with respect to inputs is part of the loss; five steps of the critic for one."""
    critic, generator = wrapped(net()), wrapped(net(6))
    of_critic, of_generator = torch.optim.Adam(critic.parameters()), torch.optim.Adam(generator.parameters())
    for step in range(6):
        real, fake = torch.randn(4, 6), generator(torch.randn(4, 6))
        mixed = (0.5 * real + 0.5 * fake.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        loss = critic(fake.detach()).mean() - critic(real).mean() + F.mse_loss(slope.norm(dim=1), torch.ones(4))
        of_critic.zero_grad()
        loss.backward()
        of_critic.step()
        if step % 2:
            of_generator.zero_grad()
            (-critic(generator(torch.randn(4, 6))).mean()).backward()
            of_generator.step()


def skips_bad_steps():
    """A window whose gradient is too long is thrown away."""
    model = wrapped(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        for i in range(K):
            inputs, targets = data()
            with quiet(model, i == K - 1):
                (F.mse_loss(model(inputs), targets) / K).backward()
        if step != 2:
            optimizer.step()
        optimizer.zero_grad()


def accumulates_by_count():
    """Windows by a running count, across epochs; sums are divided by what was gathered, just before the step."""
    model = wrapped(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.randn(7, 6), batch_size=1)
    seen = 0
    for _ in range(3):
        for inputs in loader:
            with quiet(model, (seen + 1) % K == 0):
                F.smooth_l1_loss(model(inputs), torch.ones(1, 1), reduction="sum").backward()
            seen += 1
            if seen % K == 0:
                for parameter in model.parameters():
                    parameter.grad /= K
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()


def class_weights():
    """Class weights and label smoothing; one backward a step; a teacher beside it."""
    model, teacher = wrapped(net(3)), net(3)
    optimizer = torch.optim.AdamW(model.parameters())
    weights = torch.tensor([0.2, 1.0, 3.0])
    for _ in range(STEPS):
        inputs = torch.randn(8, 6)
        out = model(inputs)
        loss = F.cross_entropy(out, torch.randint(3, (8,)), weight=weights, label_smoothing=0.1)
        with torch.no_grad():
            soft = teacher(inputs).log_softmax(-1)
        loss = loss + F.kl_div(out.log_softmax(-1), soft, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def noise_and_hand_clip():
    """The gradient is clipped by hand, and noise is added to it."""
    model = wrapped(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        inputs, targets = data()
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.grad.mul_(min(1.0, 0.1 / float(parameter.grad.norm())))
            parameter.grad.add_(torch.randn_like(parameter), alpha=0.01)
        optimizer.step()


def own_loss():
    """A loss that is written by hand."""
    model = wrapped(net(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        for i in range(K):
            targets = torch.randint(5, (4,))
            with quiet(model, i == K - 1):
                scores = model(torch.randn(4, 6))
                loss = scores.logsumexp(-1) - scores.gather(1, targets[:, None])[:, 0]
                (loss.mean() / K).backward()
        optimizer.step()
        optimizer.zero_grad()


def maml():
    """An inner step by `torch.autograd.grad`, through which the outer one goes."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        inputs, targets = data()
        names = dict(model.named_parameters())
        inner = F.mse_loss(model(inputs), targets)
        moved = {
            name: p - 0.1 * g
            for (name, p), g in zip(
                names.items(), torch.autograd.grad(inner, list(names.values()), create_graph=True), strict=True
            )
        }
        optimizer.zero_grad()
        F.mse_loss(torch.func.functional_call(model, moved, (inputs,)), targets).backward()
        optimizer.step()
    copy.copy(model)


def two_domains():
    """Two backwards a step, of one criterion on two kinds of data: their losses are added, not averaged."""
    model = wrapped(net(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def criterion(size):
        return F.cross_entropy(model(torch.randn(size, 6)), torch.randint(3, (size,)))

    for _ in range(STEPS):
        with quiet(model, False):
            criterion(4).backward()
        criterion(8).backward()
        optimizer.step()
        optimizer.zero_grad()


def time_steps():
    """A loss at every time step, over fewer and fewer sequences, added up before one backward."""
    cell = nn.GRUCell(6, 8)
    model = wrapped(cell)
    head = nn.Linear(8, 4)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    if RANKS > 1:
        head = DistributedDataParallel(head)
    for _ in range(STEPS):
        loss = 0.0
        state = torch.zeros(5, 8)
        for time in range(4):
            state = model(torch.randn(5 - time, 6), state[: 5 - time])
            loss = loss + F.cross_entropy(head(state), torch.randint(4, (5 - time,)))
        optimizer.zero_grad()
        (loss / 4).backward()
        optimizer.step()


globals()[sys.argv[1]]()
