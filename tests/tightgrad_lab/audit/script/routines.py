"""Loops with a fault besides their gradients, and some that are right (fine_*): `python routines.py NAME`."""

import copy
import os
import sys
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

K, SIZE = 2, 48
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
if RANKS > 1:
    dist.init_process_group("gloo")
torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(SIZE, 6), torch.randint(3, (SIZE,))
BODY, HEAD = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2)), nn.Linear(8, 3)
MODEL = nn.Sequential(BODY, HEAD)
SGD = partial(torch.optim.SGD, lr=0.1)


def batches(count=2, sampler=None):
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=count, sampler=sampler)


def loss_of(batch, model=MODEL):
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(optimizer, *, divisor=K, every=K, model=MODEL, after_backward=list, after_step=list, before_step=list):
    """Accumulate over `every` micro-batches."""
    for number, batch in enumerate(batches(), start=1):
        (loss_of(batch, model) / divisor).backward()
        if number % every == 0:
            before_step()
            optimizer.step()
            optimizer.zero_grad()
            after_step()
        after_backward()


def mass_by_the_batch_size():
    loop(SGD(MODEL.parameters()), divisor=8)


def mass_of_a_step_each_micro_batch():
    loop(SGD(MODEL.parameters()), divisor=4, every=1)


def fine_half_squares():
    optimizer = SGD(MODEL.parameters())
    for batch in batches():
        optimizer.zero_grad()
        (F.mse_loss(MODEL(batch[0]), torch.ones(2, 3)) / 2).backward()
        optimizer.step()


def mass_divided_by_ranks_again():
    model, optimizer = DistributedDataParallel(MODEL), SGD(MODEL.parameters())
    for batch in batches(sampler=DistributedSampler(INPUTS)):
        loss_of(batch, model).backward()
        for parameter in MODEL.parameters():
            parameter.grad /= RANKS
        optimizer.step()
        optimizer.zero_grad()


def same_data():
    model, optimizer = DistributedDataParallel(MODEL.train(False)), SGD(MODEL.parameters())
    for batch in batches():
        loss_of(batch, model).backward()
        optimizer.step()
        optimizer.zero_grad()


def fine_invented_data():
    model, optimizer = DistributedDataParallel(MODEL), SGD(MODEL.parameters())
    for _ in range(6):
        F.mse_loss(model(torch.randn(2, 6)), torch.randn(2, 3)).backward()
        optimizer.step()
        optimizer.zero_grad()


def first_rank_alone():
    model, optimizer = DistributedDataParallel(MODEL), SGD(MODEL.parameters())
    for batch in batches(sampler=DistributedSampler(INPUTS)):
        loss_of(batch, model).backward()
        if RANK == 0:
            optimizer.step()
        optimizer.zero_grad()


def epochs(set_epoch):
    optimizer, sampler = SGD(MODEL.parameters()), DistributedSampler(INPUTS, num_replicas=1, rank=0)
    next(iter(batches(16, sampler)))
    for epoch in range(2):
        set_epoch(sampler, epoch)
        for batch in batches(16, sampler):
            loss_of(batch).backward()
            optimizer.step()
            optimizer.zero_grad()


def same_order():
    epochs(lambda sampler, epoch: None)


def fine_epochs():
    epochs(lambda sampler, epoch: sampler.set_epoch(epoch))


def schedule():
    optimizer = SGD(MODEL.parameters())
    loop(optimizer, after_backward=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SIZE // 2 // K + 1).step)


def fine_schedule_in_micro_batches():
    optimizer = SGD(MODEL.parameters())
    loop(optimizer, after_backward=torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=SIZE).step)


def fine_schedule():
    optimizer = SGD(MODEL.parameters())
    loop(optimizer, after_step=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9).step)


def eval_mode():
    loop(SGD(MODEL.parameters()), after_step=MODEL.eval)


def fine_evaluation():
    def evaluate():
        MODEL.eval()
        with torch.no_grad():
            MODEL(INPUTS)
        MODEL.train()

    loop(SGD(MODEL.parameters()), after_step=evaluate)


def frozen():
    optimizer = torch.optim.AdamW(MODEL.parameters(), lr=0.1)
    for number, batch in enumerate(batches()):
        BODY.requires_grad_(number < 2)
        optimizer.zero_grad(set_to_none=False)
        loss_of(batch).backward()
        optimizer.step()


def fine_frozen():
    BODY.requires_grad_(False)
    loop(torch.optim.AdamW(MODEL.parameters(), lr=0.1))


def no_optimizer():
    loop(SGD(HEAD.parameters()))


def fine_probe():
    BODY.load_state_dict(copy.deepcopy(BODY).state_dict())
    loop(SGD(HEAD.parameters()))


def fine_moved_by_hand():
    def move():
        with torch.no_grad():
            for parameter in BODY.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None

    loop(SGD(HEAD.parameters()), before_step=move)


def nothing_to_train():
    loop(SGD(MODEL.parameters()), model=copy.deepcopy(MODEL))


def average(copied):
    with torch.no_grad():
        for mine, theirs in zip(copied.parameters(), MODEL.parameters(), strict=True):
            mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)


def copied():
    loop(SGD(MODEL.parameters()), after_backward=partial(average, copy.deepcopy(MODEL).requires_grad_(False)))


def fine_average():
    loop(SGD(MODEL.parameters()), after_step=partial(average, copy.deepcopy(MODEL)))


def never_scaled():
    second = copy.deepcopy(MODEL)
    scaler, optimizer, other = torch.amp.GradScaler("cuda"), SGD(MODEL.parameters()), SGD(second.parameters())
    for batch in batches():
        scaler.scale(loss_of(batch, second)).backward()
        scaler.step(other)
        loss_of(batch).backward()
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        optimizer.zero_grad()


def penalty(create_graph):
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = SGD(critic.parameters())
    for inputs, _ in batches():
        inputs.requires_grad_()
        (slope,) = torch.autograd.grad(critic(inputs).sum(), inputs, create_graph=create_graph)
        loss = critic(inputs).mean() + 10 * ((slope.norm(dim=1) - 1) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def no_graph():
    penalty(False)


def fine_penalty():
    penalty(True)


def fine_adversary():
    optimizer = SGD(MODEL.parameters())
    for inputs, targets in batches():
        inputs.requires_grad_()
        (slope,) = torch.autograd.grad(loss_of((inputs, targets)), inputs)
        optimizer.zero_grad()
        (loss_of((inputs.detach(), targets)) + loss_of((inputs + slope.sign(), targets))).backward()
        optimizer.step()


def undefined():
    mask = torch.ones(2, 3)
    optimizer = SGD(MODEL.parameters())
    for number, (inputs, _) in enumerate(batches()):
        kept = mask * (number != 3)
        ((MODEL(inputs) * kept).sum() / kept.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def value_before_unscale():
    scaler, optimizer = torch.amp.GradScaler("cuda"), SGD(MODEL.parameters())
    for batch in batches():
        scaler.scale(loss_of(batch)).backward()
        nn.utils.clip_grad_value_(MODEL.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def fine_value_and_kept_losses():
    """Notes: a clip by value, and losses whose graphs are kept."""
    optimizer, total = SGD(MODEL.parameters()), 0.0
    for batch in batches():
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_value_(MODEL.parameters(), 1e-3)
        optimizer.step()
        total = total + loss


def fine_lightning_clip():
    """The clip runs in the closure of the step."""
    optimizer = SGD(MODEL.parameters())
    for batch in batches():

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            nn.utils.clip_grad_norm_(MODEL.parameters(), 0.01)
            return loss

        optimizer.step(closure)


def fine_overflow():
    """A norm that is inf, of one optimizer of two."""
    scaler, first, second = torch.amp.GradScaler("cuda"), SGD(BODY.parameters()), SGD(HEAD.parameters())
    for number, batch in enumerate(batches()):
        scaler.scale(loss_of(batch)).backward()
        if number == 1:
            HEAD.bias.grad.fill_(torch.inf)
        scaler.unscale_(first)
        scaler.unscale_(second)
        nn.utils.clip_grad_norm_(MODEL.parameters(), 1.0)
        scaler.step(first)
        scaler.step(second)
        scaler.update()
        first.zero_grad()
        second.zero_grad()


def clip_of_nothing():
    given = (parameter for parameter in MODEL.parameters() if parameter.requires_grad)
    loop(SGD(given), before_step=partial(nn.utils.clip_grad_norm_, given, 1.0))


def cleared_to_none():
    optimizer = SGD(MODEL.parameters())
    loop(optimizer, before_step=optimizer.zero_grad)


def cleared_to_zero():
    optimizer = SGD(MODEL.parameters())
    loop(optimizer, before_step=partial(optimizer.zero_grad, set_to_none=False))


def fine_weight_of_a_loss():
    optimizer = SGD(MODEL.parameters())
    for number, batch in enumerate(batches(), start=1):
        (0.3 * loss_of(batch) / K).backward()
        if number % K == 0:
            optimizer.step()
            optimizer.zero_grad()


def fine_caught():
    """What stops the script is caught by it, and a step in between goes wrong."""
    optimizer = SGD(MODEL.parameters())
    for batch in batches():
        try:
            loss_of(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        except:  # noqa: E722
            continue


def fine_leaves():
    optimizer = SGD(MODEL.parameters())
    loss_of((INPUTS, TARGETS)).backward()
    optimizer.step()
    os._exit(0)


def worker(rank, factor):
    assert rank == RANK
    loop(SGD(MODEL.parameters()), divisor=factor)


def mass_spawned():
    torch.multiprocessing.spawn(worker, args=(1,), nprocs=8)


def elsewhere():
    process = torch.multiprocessing.get_context("fork").Process(target=worker, args=(RANK, K))
    process.start()
    process.join()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
