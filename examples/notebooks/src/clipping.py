# %% setup
import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

import tightgrad as tg
from tightgrad_lab.common.byte_model import plays

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
text = plays()
print(bytes(text[:110].tolist()).decode())


# %% by_hand
gradient = torch.tensor([3.0, 4.0, 0.5])
bound = 1.0

by_norm = gradient * min(1.0, bound / float(gradient.norm()))
by_value = gradient.clamp(-bound, bound)

for clipped in (by_norm, by_value):
    cosine = F.cosine_similarity(clipped, gradient, dim=0)
    print(clipped.tolist(), f"{float(clipped.norm()):.3f} {float(cosine):.3f}")


# %% clip
def clip_by_norm_(parameters, max_norm):
    grads = [parameter.grad for parameter in parameters]
    total_norm = torch.stack([grad.norm() for grad in grads]).norm()
    if total_norm > max_norm:
        for grad in grads:
            grad.mul_(max_norm / total_norm)
    return float(total_norm)


# %% model
class Reader(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.embedding = nn.Embedding(128, 32)
        self.recurrent = nn.RNN(32, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 128)
        nn.init.orthogonal_(self.recurrent.weight_hh_l0)

    def forward(self, pieces):
        states, _ = self.recurrent(self.embedding(pieces))
        return self.head(states)


def loss_of(model, pieces):
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def batches(steps, size=16, length=50):
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        starts = torch.randint(len(text) - length - 1, (size,), generator=draw)
        yield text[starts.unsqueeze(1) + torch.arange(length + 1)]


# %% same_clip
def gradients():
    torch.manual_seed(0)
    model = Reader()
    loss_of(model, next(batches(1))).backward()
    return model


mine, theirs = gradients(), gradients()
norm_mine = clip_by_norm_(mine.parameters(), max_norm=0.1)
norm_theirs = float(tg.clip_grad_norm_(theirs.parameters(), max_norm=0.1))
difference = max(float((a.grad - b.grad).abs().max()) for a, b in zip(mine.parameters(), theirs.parameters()))
print(f"{norm_mine:.6f} {norm_theirs:.6f} {difference:.1e}")
assert abs(norm_mine - norm_theirs) < 1e-6 and difference < 1e-6


# %% two_clips
flat = torch.cat([parameter.grad.flatten() for parameter in gradients().parameters()])
kept, cosine_norm, cosine_value = [], [], []
for share in torch.linspace(0.02, 1.0, 25):
    cut = flat.clamp(-share * flat.abs().max(), share * flat.abs().max())
    same_length = flat * cut.norm() / flat.norm()
    kept.append(float(cut.norm() / flat.norm()))
    cosine_value.append(float(F.cosine_similarity(cut, flat, dim=0)))
    cosine_norm.append(float(F.cosine_similarity(same_length, flat, dim=0)))

figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.plot(kept, cosine_norm, label="norm")
axis.plot(kept, cosine_value, "--", label="value")
axis.set(xlabel="|clipped| / |g|", ylabel="cosine", ylim=(0.4, 1.05))
axis.legend()
plt.show()
print(f"{min(cosine_norm):.3f} {min(cosine_value):.3f}")


# %% train
def train(max_norm, rate, seed=0, steps=120):
    torch.manual_seed(seed)
    model = Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses, norms = [], []
    for pieces in batches(steps):
        optimizer.zero_grad()
        loss = loss_of(model, pieces)
        loss.backward()
        norms.append(clip_by_norm_(model.parameters(), max_norm))
        optimizer.step()
        losses.append(loss.item())
    return model, losses, norms


# %% rates
INF = float("inf")
RATES = (0.5, 2.0, 8.0)
runs = {(rate, bound): [train(bound, rate, seed)[1:] for seed in range(3)] for rate in RATES for bound in (INF, 0.5)}
for (rate, bound), seeds in runs.items():
    last = [sum(losses[-20:]) / 20 for losses, norms in seeds]
    largest = max(max(norms) for losses, norms in seeds)
    print(f"rate={rate}  max_norm={bound}  loss=" + " ".join(f"{loss:5.2f}" for loss in last) + f"  max={largest:.1f}")


# %% rates_figure
figure, axes = plt.subplots(2, 3, figsize=(9, 4.2), sharex=True, layout="constrained")
for column, rate in enumerate(RATES):
    for bound, style in ((INF, "--"), (0.5, "-")):
        losses, norms = runs[rate, bound][0]
        axes[0, column].plot(losses, style, linewidth=1, label=f"max_norm={bound}")
        axes[1, column].plot(norms, style, linewidth=1)
    axes[0, column].set(title=f"rate={rate}", ylim=(1.5, 12))
    axes[1, column].set(xlabel="step", yscale="log", ylim=(0.1, 500))
axes[0, 0].set_ylabel("loss")
axes[1, 0].set_ylabel("total_norm")
axes[0, 0].legend()
plt.show()


# %% tightgrad
def train_with_tightgrad(max_norm, rate, steps=120):
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    pipe = tg.attach(model, optimizer, tg.Plan(clip=tg.clip.GlobalNorm(max_norm)))
    records = []
    for window in pipe.windows(batches(steps)):
        for pieces in window:
            pipe.backward(loss_of(model, pieces))
        records.append(pipe.step())
    pipe.close()
    return model, records


ours, losses, norms = train(0.5, 2.0, steps=20)
theirs, records = train_with_tightgrad(0.5, 2.0, steps=20)
difference = max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters()))
print(f"{difference:.1e} {norms[-1]:.4f} {records[-1].grad_norm:.4f} {records[-1].clip_coef:.4f}")
assert difference < 1e-6


# %% choose
_, records = train_with_tightgrad(INF, 0.5)
norms = sorted(record.grad_norm for record in records[20:])
chosen = norms[int(0.9 * len(norms))]
_, records = train_with_tightgrad(chosen, 0.5)
clipped = sum(record.clip_coef < 1 for record in records[20:]) / len(records[20:])
print(f"{chosen=:.3f} {clipped=:.0%}")
