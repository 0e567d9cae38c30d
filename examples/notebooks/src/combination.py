# %% setup
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import tightgrad as tg
from tightgrad_lab.common.verse import lines

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
verses = lines()
RANKS, MICRO_BATCHES, SIZE = 2, 4, 4


# %% model
class Reader(nn.Module):
    def __init__(self, width=32, hidden=64):
        super().__init__()
        self.embedding = nn.Embedding(128, width)
        self.recurrent = nn.RNN(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 128)
        nn.init.orthogonal_(self.recurrent.weight_hh_l0)

    def forward(self, pieces):
        states, _ = self.recurrent(self.embedding(pieces))
        return self.head(states)


def loss_of(model, pieces):
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten(), ignore_index=0)


def weight_of(pieces):
    return (pieces[:, 1:] != 0).sum()


def window_of(step, rank, micro_batches=MICRO_BATCHES, size=SIZE):
    draw = torch.Generator().manual_seed(1000 * step + rank)
    chosen = torch.randint(len(verses), (micro_batches * size,), generator=draw)
    return [nn.utils.rnn.pad_sequence([verses[i] for i in part], batch_first=True) for part in chosen.split(size)]


held_out = nn.utils.rnn.pad_sequence(verses[5000:5128], batch_first=True)
print([[int(weight_of(pieces)) for pieces in window_of(0, rank)] for rank in range(RANKS)])


# %% pieces
def largest(vector, density=0.02):
    kept = torch.zeros_like(vector)
    places = vector.abs().topk(max(1, round(density * len(vector)))).indices
    kept[places] = vector[places]
    return kept, 8 * len(places)


def everything(vector):
    return vector, 4 * len(vector)


def local_gradient(model, window, total):
    model.zero_grad()
    for pieces in window:
        (loss_of(model, pieces) * weight_of(pieces) / total).backward()
    return [parameter.grad.flatten().clone() for parameter in model.parameters()]


# %% path
def train(rate, method=largest, max_norm=0.5, micro_batches=MICRO_BATCHES, steps=100, seed=0, spoil=None, check=True):
    torch.manual_seed(seed)
    model = Reader()
    parameters = list(model.parameters())
    residuals = [[torch.zeros(p.numel()) for p in parameters] for _ in range(RANKS)]
    norms, losses, sent = [], [], 0
    for step in range(steps):
        windows = [window_of(step, rank, micro_batches) for rank in range(RANKS)]
        total = sum(weight_of(pieces) for window in windows for pieces in window)
        gradients = [local_gradient(model, window, total) for window in windows]
        if step == spoil:
            gradients[0][-1][0] = float("nan")
        if check and not all(part.isfinite().all() for gradient in gradients for part in gradient):
            continue
        delivered = [torch.zeros(p.numel()) for p in parameters]
        for rank in range(RANKS):
            for i, part in enumerate(gradients[rank]):
                wanted = part + residuals[rank][i]
                message, nbytes = method(wanted)
                residuals[rank][i] = wanted - message
                delivered[i] += message
                sent += nbytes
        total_norm = torch.cat(delivered).norm()
        factor = min(1.0, max_norm / float(total_norm))
        with torch.no_grad():
            for parameter, part in zip(parameters, delivered):
                parameter -= rate * factor * part.view_as(parameter)
            losses.append(float(loss_of(model, held_out)))
        norms.append(float(total_norm))
    return model, {"loss": losses, "norm": norms, "bytes": sent / RANKS}


# %% tightgrad
def train_with_tightgrad(rate, steps, density=0.02, max_norm=0.5):
    codec = tg.codecs.TopK(density=density, values=tg.codecs.Cast("float32"))
    plan = tg.Plan(
        accumulate=tg.Accumulate(micro_batches=MICRO_BATCHES),
        compress=tg.Compress(codec, feedback=tg.ErrorFeedback()),
        clip=tg.clip.GlobalNorm(max_norm),
    )

    def one_rank(collective):
        model = models[collective.rank]
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        pipe = tg.attach(model, optimizer, plan, weight=weight_of, collective=collective)
        records = []
        for window in pipe.windows([b for step in range(steps) for b in window_of(step, collective.rank)]):
            for pieces in window:
                pipe.backward(loss_of(model, pieces))
            records.append(pipe.step())
        pipe.close()
        return model, records

    models = []
    for _ in range(RANKS):
        torch.manual_seed(0)
        models.append(Reader())
    return tg.collectives.run_threaded(RANKS, one_rank)[0]


ours, run = train(rate=1.0, steps=15)
theirs, records = train_with_tightgrad(rate=1.0, steps=15)
difference = max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters()))
print(f"{difference:.1e} {run['norm'][-1]:.5f} {records[-1].grad_norm:.5f} weight={records[-1].weight}")
assert difference < 1e-6


# %% combinations
WINDOWS = 50
runs = {}
for count in (1, MICRO_BATCHES):
    for method in (everything, largest):
        for max_norm in (math.inf, 0.5):
            steps = WINDOWS * MICRO_BATCHES // count
            _, run = train(2.0, method, max_norm, micro_batches=count, steps=steps)
            runs[count, method.__name__, max_norm] = run
            last = sum(run["loss"][-5:]) / 5
            print(
                f"K={count} {method.__name__:10} max_norm={max_norm:<4} steps={steps:<4}"
                f" loss={last:5.2f} {run['bytes'] / 1e6:6.2f} MB"
            )


# %% combinations_figure
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (count, method, max_norm), run in runs.items():
    last = sum(run["loss"][-5:]) / 5
    filled = "C0" if max_norm < math.inf else "none"
    axis.scatter(run["bytes"] / 1e6, last, s=90, facecolor=filled, edgecolor="C0", marker="o" if count == 1 else "s")
    if max_norm < math.inf:
        axis.annotate(f"K={count}\n{method}", (run["bytes"] / 1e6, last), (8, -8), textcoords="offset points", fontsize=7)
axis.set(xscale="log", xlim=(0.1, 60), xlabel="MB", ylabel="loss")
plt.show()


# %% poison
for check in (True, False):
    model, run = train(rate=1.0, steps=6, spoil=2, check=check)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    nan = float(weights.isnan().double().mean())
    print(f"{check=} steps={len(run['loss'])} loss={run['loss'][-1]:.2f} {nan=:.3f} {min(1.0, math.nan)=}")


# %% clip_each_rank
pair = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
mean = pair.mean(0)
after_sum = mean * min(1.0, 1.0 / float(mean.norm()))
before_sum = torch.stack([part * min(1.0, 1.0 / float(part.norm())) for part in pair]).mean(0)
print(after_sum.tolist(), before_sum.tolist(), f"{float(F.cosine_similarity(after_sum, before_sum, dim=0)):.3f}")


# %% each_micro_batch
def sent_bytes(per_micro_batch):
    model = Reader()
    window = window_of(0, 0)
    total = sum(weight_of(pieces) for pieces in window)
    groups = [[pieces] for pieces in window] if per_micro_batch else [window]
    return sum(largest(part)[1] for group in groups for part in local_gradient(model, group, total))


print(f"{sent_bytes(False)=} {sent_bytes(True)=}")
