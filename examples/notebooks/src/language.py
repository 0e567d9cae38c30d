# %% setup
import matplotlib.pyplot as plt
import torch
from torch import nn

import tightgrad as tg
from tightgrad_lab.cases import load_case

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
text, translation = load_case("text"), load_case("translation")
glosses, _ = text.load()
pairs, _ = translation.load()
for i in (0, 1, 2):
    print(glosses.names[glosses.labels[i]], "|", glosses.raw[i][:70])
for i in (0, 1, 2):
    print(*pairs.raw[i], sep=" | ")


# %% embedding
torch.manual_seed(0)
classifier = text.model()
chosen = torch.randint(len(glosses), (32,), generator=torch.Generator().manual_seed(0))
text.loss(classifier, text.batch(glosses, chosen)).backward()

shares = {}
for name, parameter in classifier.named_parameters():
    shares[name] = float((parameter.grad == 0).double().mean())
rows = classifier.embedding.weight.grad
touched = int((rows != 0).any(1).sum())
total = sum(parameter.numel() for parameter in classifier.parameters())
print(f"{tuple(rows.shape)} touched={touched} zeros={shares['embedding.weight']:.3f} share={rows.numel() / total:.2f}")


# %% embedding_bytes
flat = rows.flatten()
k = int((flat != 0).sum())
four_bit_bytes = len(flat) // 2 + 4 * (len(flat) // 256)
print(f"dense={4 * len(flat)} four_bits={four_bit_bytes} nonzeros={8 * k}")


# %% window
def window_of(step, micro_batches=4, size=8):
    draw = torch.Generator().manual_seed(step)
    chosen = torch.randint(len(pairs), (micro_batches * size,), generator=draw)
    by_length = chosen[torch.tensor([len(pairs.targets[i]) for i in chosen.tolist()]).argsort(stable=True)]
    return [translation.batch(pairs, part) for part in by_length.split(size)]


def tokens(batch):
    return int((batch[1][:, 1:] != 0).sum())


print([tokens(batch) for batch in window_of(0)])


# %% weights
def gradient(model, window, weights):
    model.zero_grad()
    for batch, weight in zip(window, weights):
        (translation.loss(model, batch) * weight / sum(weights)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


torch.manual_seed(0)
model = translation.model()
errors, first, last = [], [], []
for step in range(20):
    window = window_of(step)
    counts = [tokens(batch) for batch in window]
    exact = gradient(model, window, counts)
    wrong = gradient(model, window, [1] * len(window))
    errors.append(float((wrong - exact).norm() / exact.norm()))
    first.append(sum(counts) / counts[0] / len(counts))
    last.append(sum(counts) / counts[-1] / len(counts))
mean = [sum(values) / len(values) for values in (errors, first, last)]
print(f"error={mean[0]:.2f} shortest={mean[1]:.2f} longest={mean[2]:.2f}")


# %% weights_figure
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.plot(first, errors, "o")
axis.set(xlabel="weight of a token in the shortest micro_batch", ylabel="|error| / |g|")
plt.show()


# %% by_hand
def train(steps, max_norm, rate=4e-3):
    torch.manual_seed(0)
    model = translation.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98))
    losses, norms = [], []
    for step in range(steps):
        window = window_of(step)
        total = sum(tokens(batch) for batch in window)
        optimizer.zero_grad()
        for batch in window:
            loss = translation.loss(model, batch) * tokens(batch) / total
            loss.backward()
            losses.append(loss.item())
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), max_norm)))
        optimizer.step()
    return model, [sum(losses[i : i + 4]) for i in range(0, len(losses), 4)], norms


# %% tightgrad
def train_with_tightgrad(steps, max_norm, rate=4e-3):
    torch.manual_seed(0)
    model = translation.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98))
    plan = tg.Plan(
        accumulate=tg.Accumulate(micro_batches=4),
        clip=tg.clip.GlobalNorm(max_norm, compat="torch"),
    )
    pipe = tg.attach(model, optimizer, plan, weight=lambda batch: (batch[1][:, 1:] != 0).sum())
    for window in pipe.windows([batch for step in range(steps) for batch in window_of(step)]):
        for batch in window:
            pipe.backward(translation.loss(model, batch))
        record = pipe.step()
    pipe.close()
    return model, record


ours, losses, norms = train(steps=5, max_norm=1.0)
theirs, record = train_with_tightgrad(steps=5, max_norm=1.0)
difference = max(float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters()))
print(f"{difference:.1e} weight={record.weight} {norms[-1]:.4f} {record.grad_norm:.4f}")
assert difference < 1e-6


# %% effect
_, losses, norms = train(steps=80, max_norm=1.0)
_, free_losses, free_norms = train(steps=80, max_norm=float("inf"))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
left.plot(free_losses, "--", label="max_norm=inf")
left.plot(losses, label="max_norm=1.0")
left.set(xlabel="step", ylabel="loss")
left.legend()
right.plot(free_norms, "--")
right.plot(norms)
right.axhline(1.0, color="gray", linestyle=":")
right.set(xlabel="step", ylabel="total_norm", yscale="log")
plt.show()
for begin in (0, 20, 40, 60):
    part = norms[begin : begin + 20]
    print(f"steps {begin}-{begin + 19}: clipped={sum(norm > 1.0 for norm in part) / 20:.0%}")
print(f"{sum(losses[-10:]) / 10:.3f} {sum(free_losses[-10:]) / 10:.3f}")
