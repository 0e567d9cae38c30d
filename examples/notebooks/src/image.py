# %% setup
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import tightgrad as tg
from tightgrad_lab.cases import load_case

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
train_images, test_images = load_case("image").load()

figure, axes = plt.subplots(1, 8, figsize=(8, 1.3))
for axis, image, label in zip(axes, train_images.pixels, train_images.labels):
    axis.imshow(image, cmap="gray_r")
    axis.set_title(train_images.names[label], fontsize=7)
    axis.set_axis_off()
plt.show()


# %% model
class Network(nn.Sequential):
    def __init__(self, norm):
        super().__init__(
            nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
            norm(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            norm(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 49, 10),
        )


def group_norm(channels):
    return nn.GroupNorm(channels // 8, channels)


def batch_of(step, rank, size):
    draw = torch.Generator().manual_seed(1000 * step + rank)
    chosen = torch.randint(len(train_images), (size,), generator=draw)
    return train_images.standardised(chosen).double(), train_images.labels[chosen]


def loss_of(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


@torch.no_grad()
def accuracy(model):
    images = test_images.standardised(torch.arange(500)).double()
    return float((model(images).argmax(1) == test_images.labels[:500]).double().mean())


# %% norms
def gradient(norm, pieces):
    torch.manual_seed(0)
    model = Network(norm)
    total = sum(len(labels) for _, labels in pieces)
    for images, labels in pieces:
        (loss_of(model, (images, labels)) * len(labels) / total).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


images, labels = batch_of(0, 0, size=64)
sizes = [64, 32, 16, 8, 4, 2]
errors = {}
for norm in (group_norm, nn.BatchNorm2d):
    whole = gradient(norm, [(images, labels)])
    cut = [gradient(norm, list(zip(images.split(b), labels.split(b)))) for b in sizes]
    errors[norm.__name__] = [float((one - whole).norm() / whole.norm()) for one in cut]
    print(f"{norm.__name__:12}", " ".join(f"{error:.1e}" for error in errors[norm.__name__]))
assert max(errors["group_norm"]) < 1e-6


# %% norms_figure
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
for (name, values), style in zip(errors.items(), ("o-", "s--")):
    axis.plot(sizes, values, style, label=name)
axis.set(xlabel="micro_batch", ylabel="|error| / |g|", xscale="log")
axis.set_xticks(sizes, sizes)
axis.minorticks_off()
axis.legend()
plt.show()


# %% path
RANKS, MICRO_BATCHES, SIZE = 2, 2, 16


def four_bits(vector, block=256):
    padded = F.pad(vector, (0, -len(vector) % block)).view(-1, block)
    scale = padded.abs().amax(1, keepdim=True).clamp(min=1e-30) / 7
    return ((padded / scale).round() * scale).flatten()[: len(vector)], len(vector) // 2 + 4 * len(padded)


def everything(vector):
    return vector, 4 * len(vector)


def train(rate, method=everything, max_norm=math.inf, steps=60, seed=0):
    torch.manual_seed(seed)
    model = Network(group_norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    parameters = list(model.parameters())
    residuals = [[torch.zeros(p.numel()) for p in parameters] for _ in range(RANKS)]
    losses, norms, sent = [], [], 0
    for step in range(steps):
        delivered = [torch.zeros(p.numel()) for p in parameters]
        for rank in range(RANKS):
            optimizer.zero_grad()
            images, labels = batch_of(step, rank, MICRO_BATCHES * SIZE)
            for piece in zip(images.split(SIZE), labels.split(SIZE)):
                loss = loss_of(model, piece)
                (loss / (RANKS * MICRO_BATCHES)).backward()
                losses.append(loss.item())
            for i, parameter in enumerate(parameters):
                wanted = parameter.grad.flatten() + residuals[rank][i]
                message, nbytes = method(wanted)
                residuals[rank][i] = wanted - message
                delivered[i] += message
                sent += nbytes
        for parameter, part in zip(parameters, delivered):
            parameter.grad = part.view_as(parameter)
        norms.append(float(nn.utils.clip_grad_norm_(parameters, max_norm)))
        optimizer.step()
    return model, {"loss": losses, "norm": norms, "bytes": sent / RANKS}


# %% tightgrad
def train_with_tightgrad(rate, max_norm, steps):
    codec = tg.codecs.IntBlock(bits=4, block_size=256)
    plan = tg.Plan(
        accumulate=tg.Accumulate(micro_batches=MICRO_BATCHES),
        compress=tg.Compress(codec, reducer=tg.reducers.Gather(), feedback=tg.ErrorFeedback()),
        clip=tg.clip.GlobalNorm(max_norm, compat="torch"),
    )

    def one_rank(collective):
        model = models[collective.rank]
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        pipe = tg.attach(model, optimizer, plan, weight=lambda batch: len(batch[1]), collective=collective)
        loader = []
        for step in range(steps):
            images, labels = batch_of(step, collective.rank, MICRO_BATCHES * SIZE)
            loader += zip(images.split(SIZE), labels.split(SIZE))
        for window in pipe.windows(loader):
            for batch in window:
                pipe.backward(loss_of(model, batch))
            record = pipe.step()
        pipe.close()
        return model, record

    models = []
    for _ in range(RANKS):
        torch.manual_seed(0)
        models.append(Network(group_norm))
    return tg.collectives.run_threaded(RANKS, one_rank)[0]


ours, run = train(rate=0.1, method=four_bits, max_norm=1.0, steps=8)
theirs, record = train_with_tightgrad(rate=0.1, max_norm=1.0, steps=8)
difference = max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters()))
print(f"{difference:.1e} wire_bytes={record.wire_bytes} by_hand={run['bytes'] / 8:.0f}")
assert difference < 1e-6


# %% effect
runs = {}
for name, method, max_norm in (("none", everything, math.inf), ("all three", four_bits, 1.0)):
    results = [train(0.05, method, max_norm, seed=seed) for seed in range(3)]
    runs[name] = [accuracy(model) for model, _ in results]
    print(f"{name:10} accuracy=" + " ".join(f"{a:.3f}" for a in runs[name]) + f" {results[0][1]['bytes'] / 1e6:.2f} MB")


# %% rates
RATES = (0.05, 0.2, 0.8)
scores = {}
for max_norm in (math.inf, 1.0):
    scores[max_norm] = [accuracy(train(rate, max_norm=max_norm)[0]) for rate in RATES]
    print(f"max_norm={max_norm:<4}", " ".join(f"{score:.3f}" for score in scores[max_norm]))

figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
for (max_norm, values), style in zip(scores.items(), ("o--", "s-")):
    axis.plot(RATES, values, style, label=f"max_norm={max_norm}")
axis.set(xscale="log", xlabel="rate", ylabel="accuracy", ylim=(0, 1))
axis.set_xticks(RATES, RATES)
axis.minorticks_off()
axis.legend()
plt.show()
