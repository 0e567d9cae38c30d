# %% setup
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import tightgrad as tg
from tightgrad_lab.cases import load_case

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
case = load_case("series")
train_windows, test_windows = case.load()
hours = train_windows.hours
print(len(train_windows), len(test_windows), f"missing={float((~hours.observed).double().mean()):.3f}")

figure, axis = plt.subplots(figsize=(8, 2.4), layout="constrained")
piece = slice(0, 24 * 60)
values = hours.target[piece].double() * hours.std + hours.mean
axis.plot(torch.where(hours.observed[piece], values, torch.nan), linewidth=0.8)
axis.set(xlabel="h", ylabel="PM2.5, µg/m³")
plt.show()


# %% model
class Forecaster(nn.Module):
    def __init__(self, features, hidden=32, horizon=24):
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, horizon)

    def forward(self, past):
        states, _ = self.lstm(past)
        return past[:, -1, :1] + self.head(states[:, -1])


def fresh():
    torch.manual_seed(0)
    return Forecaster(hours.features.shape[1])


def batch_of(indices):
    past, future, observed = case.batch(train_windows, indices)
    return past.double(), future.double(), observed


def squared(model, batch):
    past, future, observed = batch
    return ((model(past) - future).square() * observed).sum() / observed.sum()


# %% gaps
observed = torch.stack([train_windows.future(torch.tensor([i]))[1].sum() for i in range(len(train_windows))])
sparse = (observed < 8).nonzero().view(-1)
full = (observed == 24).nonzero().view(-1)
print(len(sparse), len(full))


def gradient(model, window, weights):
    model.zero_grad()
    for batch, weight in zip(window, weights):
        (squared(model, batch) * weight / sum(weights)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


model, ratios, errors = fresh(), [], []
for step in range(30):
    draw = torch.Generator().manual_seed(step)
    parts = [full[torch.randint(len(full), (4,), generator=draw)] for _ in range(3)]
    parts.append(sparse[torch.randint(len(sparse), (4,), generator=draw)])
    window = [batch_of(part) for part in parts]
    counts = [int(batch[2].sum()) for batch in window]
    exact, wrong = gradient(model, window, counts), gradient(model, window, [1] * 4)
    ratios.append(counts[0] / counts[-1])
    errors.append(float((wrong - exact).norm() / exact.norm()))
print(f"{min(errors):.2f} {sorted(errors)[15]:.2f} {max(errors):.2f}")


# %% gaps_figure
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.plot(ratios, errors, "o", markersize=4)
axis.set(xlabel="weight[0] / weight[3]", ylabel="|error| / |g|")
plt.show()


# %% by_hand
def window_of(step, micro_batches=2, size=16):
    draw = torch.Generator().manual_seed(step)
    chosen = torch.randint(len(train_windows), (micro_batches * size,), generator=draw)
    return [batch_of(part) for part in chosen.split(size)]


def huber(model, batch):
    past, future, observed = batch
    return (F.huber_loss(model(past), future, reduction="none", delta=0.5) * observed).sum() / observed.sum()


def train(steps, loss_of=squared, max_norm=0.5, rate=5e-3):
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    norms = []
    for step in range(steps):
        window = window_of(step)
        total = sum(int(observed.sum()) for _, _, observed in window)
        optimizer.zero_grad()
        for batch in window:
            (loss_of(model, batch) * int(batch[2].sum()) / total).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), max_norm)))
        optimizer.step()
    return model, norms


# %% tightgrad
def train_with_tightgrad(steps, max_norm=0.5, rate=5e-3):
    model = fresh()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=2), clip=tg.clip.GlobalNorm(max_norm, compat="torch"))
    pipe = tg.attach(model, optimizer, plan, weight=lambda batch: batch[2].sum())
    for window in pipe.windows([batch for step in range(steps) for batch in window_of(step)]):
        for batch in window:
            pipe.backward(squared(model, batch))
        record = pipe.step()
    pipe.close()
    return model, record


ours, norms = train(steps=8)
theirs, record = train_with_tightgrad(steps=8)
difference = max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters()))
print(f"{difference:.1e} weight={record.weight} {norms[-1]:.4f} {record.grad_norm:.4f}")
assert difference < 1e-6


# %% effect
@torch.no_grad()
def mse(model):
    total, count = 0.0, 0
    for part in torch.arange(0, len(test_windows), 10).split(256):
        past, future, observed = case.batch(test_windows, part)
        total += float(((model(past.double()) - future).square() * observed).sum())
        count += int(observed.sum())
    return total / count


INF = float("inf")
runs = {
    "squared, inf": train(150, squared, INF),
    "squared, 0.5": train(150, squared, 0.5),
    "huber, inf": train(150, huber, INF),
}
for name, (model, norms) in runs.items():
    ordered = sorted(norms)
    print(f"{name:13} median={ordered[75]:.2f} max={ordered[-1]:.2f} ratio={ordered[-1] / ordered[75]:.1f} mse={mse(model):.3f}")
yesterday = mse(lambda past: past[:, -24:, 0])
now = mse(lambda past: past[:, -1:, 0].expand(-1, 24))
print(f"{now=:.3f} {yesterday=:.3f}")


# %% effect_figure
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for (name, (_, norms)), style in zip(runs.items(), ("--", "-", ":")):
    left.plot(norms, style, linewidth=1, label=name)
left.axhline(0.5, color="gray", linewidth=0.5)
left.set(xlabel="step", ylabel="total_norm", yscale="log")
left.legend(fontsize=7)
past, future, seen = case.batch(test_windows, torch.tensor([1000]))
right.plot(range(-72, 0), past[0, :, 0], color="gray")
right.plot(range(24), torch.where(seen[0], future[0], torch.nan), "k.", markersize=4)
with torch.no_grad():
    right.plot(range(24), runs["squared, 0.5"][0](past.double())[0], "C1")
right.plot(range(24), past[0, -24:, 0], "C0:")
right.set(xlabel="h")
plt.show()
