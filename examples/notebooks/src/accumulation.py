# %% setup
import copy

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import tightgrad as tg
from tightgrad_lab.common.verse import lines

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
verses = lines()
print(len(verses), [len(line) for line in verses[2000:2010]])


# %% by_hand
tokens = torch.tensor([16.0, 2.0, 16.0, 1.0])
means = torch.tensor([1.0, 5.0, 1.0, 9.0])
print(f"{float((tokens * means).sum() / tokens.sum()):.3f} {float(means.mean()):.3f}")


# %% model
class Reader(nn.Module):
    def __init__(self, width=32, hidden=64):
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.recurrent = nn.GRU(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 128)

    def forward(self, pieces):
        states, _ = self.recurrent(self.embedding(pieces))
        return self.head(states)


def micro_batch(indices):
    return nn.utils.rnn.pad_sequence([verses[i] for i in indices.tolist()], batch_first=True)


def weight(pieces):
    return int((pieces[:, 1:] != 0).sum())


def loss_of(model, pieces):
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten(), ignore_index=0)


def draw(step, size):
    return torch.randint(len(verses), (size,), generator=torch.Generator().manual_seed(step))


# %% accumulate
def flat_gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def accumulated(model, window, share):
    model.zero_grad()
    total = sum(weight(pieces) for pieces in window)
    for pieces in window:
        (loss_of(model, pieces) * share(pieces, total, len(window))).backward()
    return flat_gradient(model)


def by_weight(pieces, total, count):
    return weight(pieces) / total


def by_count(pieces, total, count):
    return 1 / count


# %% same_gradient
torch.manual_seed(0)
model = Reader()
indices = draw(step=0, size=16)
whole = micro_batch(indices)
window = [micro_batch(part) for part in indices.split(4)]
print([weight(pieces) for pieces in window], weight(whole))

model.zero_grad()
loss_of(model, whole).backward()
exact = flat_gradient(model)
for share in (by_weight, by_count):
    error = float((accumulated(model, window, share) - exact).norm() / exact.norm())
    print(f"{share.__name__:10} {error:.1e}")
assert float((accumulated(model, window, by_weight) - exact).norm() / exact.norm()) < 1e-6


# %% ragged
by_length = sorted(range(len(verses)), key=lambda i: len(verses[i]))
ratios, errors = [], []
for step in range(40):
    indices = draw(step, size=8)
    if step % 2:
        indices[0] = by_length[step]
    window = [micro_batch(part) for part in indices.split(1)]
    exact = accumulated(model, window, by_weight)
    ratios.append(max(map(weight, window)) / min(map(weight, window)))
    errors.append(float((accumulated(model, window, by_count) - exact).norm() / exact.norm()))

figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.plot(ratios, errors, "o", markersize=4)
axis.set(xlabel="max(weight) / min(weight)", ylabel="|error| / |g|", ylim=(0, 1))
plt.show()
print(f"{min(errors):.2f} {max(errors):.2f}")


# %% tightgrad
def weight_of(pieces):
    return (pieces[:, 1:] != 0).sum()


def train_by_hand(sizes, steps, rate=0.5):
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for step in range(steps):
        window = [micro_batch(part) for part in draw(step, sum(sizes)).split(sizes)]
        accumulated(model, window, by_weight)
        optimizer.step()
    return model


def train_with_tightgrad(sizes, steps, rate=0.5):
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=len(sizes)))
    pipe = tg.attach(model, optimizer, plan, weight=weight_of)
    loader = [micro_batch(part) for step in range(steps) for part in draw(step, sum(sizes)).split(sizes)]
    for window in pipe.windows(loader):
        for pieces in window:
            pipe.backward(loss_of(model, pieces))
        record = pipe.step()
    pipe.close()
    return model, record


ours = train_by_hand([8, 4, 3, 1], steps=10)
theirs, record = train_with_tightgrad([8, 4, 3, 1], steps=10)
difference = max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters()))
print(f"{difference:.1e} {record.micro_batches} {record.weight}")
assert difference < 1e-6


# %% memory
def kept_bytes(model, pieces):
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, pieces)
    loss.backward()
    return sum(kept.values())


batch = micro_batch(torch.tensor([by_length[len(verses) // 2]] * 64))
fixed = 2 * sum(parameter.nbytes for parameter in model.parameters())
sizes = [64, 32, 16, 8, 4, 2, 1]
activations = [kept_bytes(model, batch[:size]) for size in sizes]
for size, nbytes in zip(sizes, activations):
    print(f"b={size:<3} K={64 // size:<3} {nbytes / 1e6:6.2f} MB + {fixed / 1e6:.2f} MB")


# %% memory_figure
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.plot(sizes, [(nbytes + fixed) / 1e6 for nbytes in activations], "o-")
axis.axhline(fixed / 1e6, linestyle=":", color="gray")
axis.set(xlabel="b (b K = 64)", ylabel="MB", xscale="log", ylim=(0, None))
axis.set_xticks(sizes, sizes)
axis.minorticks_off()
plt.show()


# %% curves
def train(micro_batches, share, size, rate, samples=2560):
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for step in range(samples // size):
        by_size = sorted(draw(step, size).tolist(), key=lambda i: len(verses[i]))
        window = [micro_batch(part) for part in torch.tensor(by_size).chunk(micro_batches)]
        accumulated(model, window, share)
        optimizer.step()
        with torch.no_grad():
            losses.append(float(loss_of(model, held_out)))
    return losses


held_out = micro_batch(torch.arange(5000, 5128))
curves = {
    "64": train(1, by_weight, size=64, rate=1.0),
    "16 x 4, weight / N": train(4, by_weight, size=64, rate=1.0),
    "16 x 4, 1 / K": train(4, by_count, size=64, rate=1.0),
}
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
for (label, losses), style in zip(curves.items(), ("-", "--", ":")):
    axis.plot(losses, style, label=label, linewidth=2 if style == "--" else 1)
axis.set(xlabel="step", ylabel="loss")
axis.legend()
plt.show()
for label, losses in curves.items():
    print(f"{label:20} {losses[-1]:.6f}")


# %% batch_and_rate
for size, rate in ((16, 0.1), (128, 0.1), (128, 0.8), (128, 6.4)):
    losses = train(size // 16, by_weight, size=size, rate=rate)
    print(f"batch={size:<4} rate={rate:<5} steps={len(losses):<4} loss={losses[-1]:.2f}")
