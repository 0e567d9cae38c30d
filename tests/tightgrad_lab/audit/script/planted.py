"""Faults of terms, divisors, data and processes, and loops that are right (fine_*): `python planted.py NAME`."""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

K, V, T = 4, 23, 9
torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
LM = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V))


def penalty():
    return sum(one.pow(2).sum() for one in MODEL.parameters())


def loss_of(size=2):
    return F.cross_entropy(MODEL(torch.randn(size, 6)), torch.randint(3, (size,)))


def loop(losses, windows=6, model=MODEL, after_step=list):
    """A step for every K losses, each of which is a function of its place in the window."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(windows):
        for place in range(K):
            losses(place).backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step()


# terms


def undivided_penalty():
    loop(lambda place: loss_of() / K + 1e-3 * penalty())


def undivided_absolute():
    def one(place):
        loss = loss_of()
        loss /= K
        loss += 0.01 * sum(one.abs().sum() for one in MODEL.parameters())
        return loss

    loop(one)


def undivided_auxiliary():
    loop(lambda place: loss_of() * (1 / K) + F.mse_loss(MODEL(torch.randn(2, 6)), torch.zeros(2, 3)))


def undivided_entropy():
    def one(place):
        chances = MODEL(torch.randn(2, 6)).softmax(-1)
        return -chances[:, 0].log().mean() / K - 0.01 * -(chances * chances.log()).sum(-1).mean()

    loop(one)


def undivided_in_low_precision():
    scaler, optimizer = torch.amp.GradScaler("cuda"), torch.optim.SGD(MODEL.parameters(), lr=0.1)
    for _ in range(6):
        for _ in range(K):
            scaler.scale(loss_of() / K + 1e-3 * penalty()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def undivided_beside_a_sum():
    def one(place):
        size = (1, 2, 3, 2)[place]
        outputs = MODEL(torch.randn(size, 6))
        return F.cross_entropy(outputs, torch.randint(3, (size,)), reduction="sum") / 8 + 1e-3 * penalty()

    loop(one)


def fine_penalty_divided():
    loop(lambda place: (loss_of() + 1e-3 * penalty()) / K)


def fine_penalty_divided_apart():
    loop(lambda place: loss_of() / K + 1e-3 * penalty() / K)


def fine_weight_divided():
    loop(lambda place: loss_of() / K + (1e-3 / K) * penalty())


def fine_penalty_once():
    loop(lambda place: loss_of() / K + (1e-3 * penalty() if place == K - 1 else 0.0))


def fine_nothing_added():
    loop(lambda place: loss_of() / K + 0.0 * penalty())


def fine_divided_by_what_is_there():
    """Three losses of three micro-batches each: the mean of them and a term, all divided once more."""
    loop(lambda place: (sum(loss_of() for _ in range(K)) / K + 1e-3 * penalty()) / K)


# divisors


def apart_last():
    loop(lambda place: loss_of() / K if place == K - 1 else loss_of())


def apart_all_but_last():
    loop(lambda place: loss_of() / K if place < K - 1 else loss_of())


def apart_by_hand():
    def one(place):
        loss = MODEL(torch.randn(2, 6)).logsumexp(-1).mean()
        return loss / K if place == K - 1 else loss

    loop(one)


def apart_running_number():
    loop(lambda place: loss_of(1 + place) / (place + 1))


def apart_running_total():
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    for _ in range(6):
        total = 0.0
        for place in range(K):
            total = total + loss_of()
            (total / K).backward(retain_graph=place < K - 1)
        optimizer.step()
        optimizer.zero_grad()


def fine_weights_of_domains():
    loop(lambda place: loss_of() * (0.4, 0.3, 0.2, 0.1)[place])


def fine_weights_that_grow():
    loop(lambda place: loss_of() * (0.1, 0.2, 0.3, 0.4)[place])


def fine_last_is_smaller():
    sizes = (4, 4, 4, 2)
    loop(
        lambda place: (
            F.cross_entropy(MODEL(torch.randn(sizes[place], 6)), torch.randint(3, (sizes[place],)), reduction="sum")
            / sum(sizes)
        )
    )


# tokens


def tokens(rows=3, low=1):
    return torch.randint(low, V, (rows, T))


def padded(rows=3):
    found = tokens(rows)
    for row, length in enumerate(torch.tensor([3, 6, T])[torch.randperm(3)] if rows == 3 else [5]):
        found[row, length:] = 0
    return found


def next_token(found, **options):
    return F.cross_entropy(LM(found[:, :-1]).flatten(0, 1), found[:, 1:].flatten(), **options) / K


def shifts_itself(given, labels):
    return F.cross_entropy(LM(given)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) / K


# data


def same_buffer():
    buffer = torch.empty(2, 6)

    def draw():
        return buffer.normal_()

    windows = []

    def one(place):
        if not place:
            windows[:] = [draw() for _ in range(K)]
        return F.mse_loss(MODEL(windows[place]), windows[place][:, :3]) / K

    loop(one)


def same_collated():
    buffer = torch.empty(2, T, dtype=torch.long)

    def gather(rows):
        for row, found in enumerate(rows):
            buffer[row] = found
        return buffer

    loader = iter(DataLoader(list(tokens(48)), batch_size=2, collate_fn=gather))
    windows = []

    def one(place):
        if not place:
            windows[:] = [next(loader) for _ in range(K)]
        return next_token(windows[place])

    loop(one, model=LM)


def changed_slices():
    found = tokens(4 * K)

    def one(place):
        part = found[4 * place : 4 * place + 4]
        labels = part.clone()
        part.masked_fill_(torch.rand(part.shape) < 0.3, 0)
        return F.cross_entropy(LM(part).flatten(0, 1), labels.flatten()) / K

    loop(one, model=LM)


class Noisy(Dataset):
    def __init__(self):
        self.inputs = torch.randn(2 * K, 6)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, number):
        found = self.inputs[number]
        found += 0.1 * torch.randn(6)
        return found


def changed_in_the_data_set():
    loader = DataLoader(Noisy(), batch_size=2)
    found = (batch for _ in range(9) for batch in loader)
    loop(lambda place: F.mse_loss(MODEL(next(found)), torch.zeros(2, 3)) / K)


def fine_buffer_used_at_once():
    buffer = torch.empty(2, 6)
    loop(lambda place: F.mse_loss(MODEL(buffer.normal_()), torch.randn(2, 3)) / K)


def fine_scaled_copy():
    found = torch.randn(4 * K, 6)

    def one(place):
        part = found[4 * place : 4 * place + 4].clone()
        part.mul_(2.0)
        return F.mse_loss(MODEL(part), torch.zeros(4, 3)) / K

    loop(one)


def fine_clipped_slices():
    found = torch.randn(4 * K, 6)

    def one(place):
        part = found[4 * place : 4 * place + 4]
        part.masked_fill_(part > 1, 1.0)
        return F.mse_loss(MODEL(part), torch.zeros(4, 3)) / K

    loop(one)


def fine_average_in_a_dict():
    average = {name: one.detach().clone() for name, one in MODEL.named_parameters()}

    def update():
        for name, one in MODEL.named_parameters():
            average[name].mul_(0.9).add_(one.detach(), alpha=0.1)
        kept = {name: one.detach().clone() for name, one in MODEL.named_parameters()}
        MODEL.load_state_dict(average)
        MODEL(torch.randn(2, 6))
        MODEL.load_state_dict(kept)

    loop(lambda place: loss_of() / K, after_step=update)


# processes


def rank_of(rank, ranks, factor):
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29511")
    dist.init_process_group("nccl", rank=rank, world_size=ranks)
    model = nn.parallel.DistributedDataParallel(MODEL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for _ in range(6):
        (F.mse_loss(model(torch.randn(2, 6)), torch.randn(2, 3)) * (ranks if factor else 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    dist.destroy_process_group()


def processes(factor, count):
    mp.set_start_method("spawn", force=True)
    begun = [mp.Process(target=rank_of, args=(rank, count), kwargs={"factor": factor}) for rank in range(count)]
    for one in begun:
        one.start()
    for one in begun:
        one.join()
    assert all(one.exitcode == 0 for one in begun)


def fine_processes():
    processes(False, 3)


def fine_process_beside():
    """A process that does no training runs for itself."""
    context = mp.get_context("fork")
    queue = context.Queue()
    one = context.Process(target=queue.put, args=(1,))
    one.start()
    assert queue.get() == 1
    one.join()
    loop(lambda place: loss_of() / K)


def mass_of_processes():
    processes(True, 3)


def mass_of_spawned():
    mp.spawn(rank_of, args=(4, True), nprocs=4)


def fine_spawned():
    mp.spawn(rank_of, args=(4, False), nprocs=4)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
