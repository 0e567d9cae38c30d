# %% setup
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import tightgrad as tg
from tightgrad_lab.cases import load_case

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
train_images, test_images = load_case("image").load()
everything = torch.arange(len(test_images))
test_x, test_y = test_images.standardised(everything).double().flatten(1), test_images.labels
print(len(train_images), len(test_images), tuple(test_x.shape))


# %% by_hand
def top_k(vector, k):
    kept = torch.zeros_like(vector)
    places = vector.abs().topk(k).indices
    kept[places] = vector[places]
    return kept


gradient = torch.tensor([0.9, -0.1, 0.4, 0.0, -0.7, 0.2, 0.1, -0.25])
residual, sent = torch.zeros(8), torch.zeros(8)
for step in range(1, 5):
    wanted = gradient + residual
    message = top_k(wanted, k=2)
    residual = wanted - message
    sent += message
    print(step, [round(value, 2) for value in message.tolist()])
print(torch.allclose(sent + residual, 4 * gradient))


# %% model
class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def batch_of(step, rank, size=32):
    chosen = torch.randint(len(train_images), (size,), generator=torch.Generator().manual_seed(1000 * step + rank))
    return train_images.standardised(chosen).double().flatten(1), train_images.labels[chosen]


def loss_of(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def accuracy(model):
    with torch.no_grad():
        return float((model(test_x).argmax(1) == test_y).double().mean())


# %% methods
def sixteen_bits(vector):
    return vector.to(torch.float16).to(vector.dtype), 2 * vector.numel()


def four_bits(vector, block=64):
    padded = F.pad(vector, (0, -len(vector) % block)).view(-1, block)
    scale = padded.abs().amax(1, keepdim=True).clamp(min=1e-30) / 7
    return ((padded / scale).round() * scale).flatten()[: len(vector)], vector.numel() // 2 + 4 * len(padded)


def largest(vector, density=0.01):
    k = max(1, round(density * len(vector)))
    return top_k(vector, k), 8 * k


def sign(vector):
    return vector.sign() * vector.abs().mean(), vector.numel() // 8 + 4


# %% one_gradient
torch.manual_seed(0)
model = Classifier()
loss_of(model, batch_of(0, 0, size=64)).backward()
layer = model[0].weight.grad.flatten()
dense_bytes = 4 * len(layer)
for method in (sixteen_bits, four_bits, largest, sign):
    received, nbytes = method(layer)
    error = float((received - layer).norm() / layer.norm())
    print(f"{method.__name__:13} compression_factor={dense_bytes / nbytes:6.1f}  relative_error={error:.4f}")


# %% strip
start = int(layer.abs().argmax()) - 30
piece = slice(start, start + 64)
figure, axes = plt.subplots(4, 1, figsize=(8, 5), sharex=True, sharey=True, layout="constrained")
for axis, method in zip(axes, (sixteen_bits, four_bits, largest, sign)):
    received, _ = method(layer)
    axis.bar(range(64), layer[piece], color="lightgray", width=0.9)
    axis.bar(range(64), received[piece], width=0.45)
    axis.set_ylabel(method.__name__, fontsize=8)
plt.show()


# %% train
RANKS = 2


def train(method, feedback, rate=0.05, steps=200):
    torch.manual_seed(0)
    model = Classifier()
    parameters = list(model.parameters())
    residuals = [[torch.zeros(p.numel()) for p in parameters] for _ in range(RANKS)]
    sent_bytes, curve = 0, []
    for step in range(steps):
        delivered = [torch.zeros(p.numel()) for p in parameters]
        for rank in range(RANKS):
            model.zero_grad()
            (loss_of(model, batch_of(step, rank)) / RANKS).backward()
            for i, parameter in enumerate(parameters):
                wanted = parameter.grad.flatten() + residuals[rank][i]
                message, nbytes = method(wanted)
                if feedback:
                    residuals[rank][i] = wanted - message
                delivered[i] += message
                sent_bytes += nbytes
        with torch.no_grad():
            for parameter, total in zip(parameters, delivered):
                parameter -= rate * total.view_as(parameter)
        if step % 10 == 9:
            curve.append((sent_bytes / RANKS, accuracy(model)))
    return model, curve


def dense(vector):
    return vector, 4 * vector.numel()


# %% feedback
runs = {
    "dense": train(dense, feedback=False),
    "four_bits + feedback": train(four_bits, feedback=True),
    "largest": train(largest, feedback=False),
    "largest + feedback": train(largest, feedback=True),
}
for name, (_, curve) in runs.items():
    nbytes, score = curve[-1]
    print(f"{name:21} {nbytes / 1e6:7.2f} MB  accuracy={score:.3f}")


# %% feedback_figure
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for (name, (_, curve)), style in zip(runs.items(), ("-", "--", ":", "-.")):
    nbytes, scores = zip(*curve)
    left.plot(range(10, 201, 10), scores, style, label=name)
    right.plot([n / 1e6 for n in nbytes], scores, style)
left.set(xlabel="step", ylabel="accuracy")
right.set(xlabel="MB", xscale="log")
left.legend()
plt.show()


# %% tightgrad
def train_with_tightgrad(compress, rate=0.05, steps=20):
    def one_rank(collective):
        model = models[collective.rank]
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        pipe = tg.attach(model, optimizer, tg.Plan(compress=compress), weight=lambda batch: 32, collective=collective)
        records = []
        for window in pipe.windows([batch_of(step, collective.rank) for step in range(steps)]):
            for batch in window:
                pipe.backward(loss_of(model, batch))
            records.append(pipe.step())
        pipe.close()
        return model, records

    models = []
    for _ in range(RANKS):
        torch.manual_seed(0)
        models.append(Classifier())
    return tg.collectives.run_threaded(RANKS, one_rank)[0]


codec = tg.codecs.TopK(density=0.01, values=tg.codecs.Cast("float32"))
ours, _ = train(largest, feedback=True, steps=20)
theirs, records = train_with_tightgrad(tg.Compress(codec, feedback=tg.ErrorFeedback()))
difference = max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters()))
print(f"{difference:.1e} wire_bytes={records[-1].wire_bytes} residual_norm={records[-1].residual_norm:.3f}")
assert difference < 1e-6


# %% bytes
by_hand = sum(8 * max(1, round(0.01 * parameter.numel())) for parameter in ours.parameters())
dense_step = sum(4 * parameter.numel() for parameter in ours.parameters())
print(f"{dense_step=} {by_hand=} tightgrad={records[-1].wire_bytes}")


# %% link
def dense_seconds(nbytes, ranks, bandwidth):
    return 2 * (ranks - 1) / ranks * nbytes / bandwidth


def gather_seconds(nbytes, ranks, bandwidth, coding):
    return (ranks - 1) * nbytes / bandwidth + coding


GRADIENT, FACTOR, CODING = 4 * 125e6, 50, 0.2
speeds = [10 ** (n / 8) for n in range(56, 89)]
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for ranks, style in ((4, "-"), (128, "--")):
    axis.plot(speeds, [dense_seconds(GRADIENT, ranks, s / 8) for s in speeds], "C0" + style, label=f"dense, W={ranks}")
    packed = [gather_seconds(GRADIENT / FACTOR, ranks, s / 8, CODING) for s in speeds]
    axis.plot(speeds, packed, "C1" + style, label=f"top-k, W={ranks}")
axis.set(xscale="log", yscale="log", xlabel="bit/s", ylabel="s / step")
axis.legend(fontsize=8)
plt.show()
for ranks in (4, 128):
    saved = 2 * (ranks - 1) / ranks * GRADIENT - (ranks - 1) * GRADIENT / FACTOR
    print(f"{ranks=} break_even={max(0.0, saved / CODING) * 8 / 1e9:.1f} Gbit/s")
