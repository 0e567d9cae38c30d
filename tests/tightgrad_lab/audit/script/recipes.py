"""Recipes that are right and unlike a plain loop, each a script of its own: `python recipes.py NAME`."""

import copy
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

K, STEPS, V, T = 4, 6, 23, 8
torch.manual_seed(0)


def net(out=3, inputs=6):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, out))


def sgd(*modules, lr=0.1):
    return torch.optim.SGD([one for module in modules for one in module.parameters()], lr=lr)


def batch(size=4):
    return torch.randn(size, 6), torch.randint(3, (size,))


def gradient_noise():
    """Noise that shrinks is added to the gradient of each step."""
    model = net()
    optimizer = sgd(model)
    for step in range(STEPS):
        for _ in range(K):
            inputs, targets = batch()
            (F.cross_entropy(model(inputs), targets) / K).backward()
        for one in model.parameters():
            one.grad += torch.randn_like(one) * 0.01 / (1 + step) ** 0.55
        optimizer.step()
        optimizer.zero_grad()


def layer_wise_rates():
    """Rates that decay with depth, weight decay for matrices only."""
    model = net()
    groups = [
        {"params": [one], "lr": 0.1 * 0.8**place, "weight_decay": 0.1 * (one.dim() > 1)}
        for place, one in enumerate(reversed(list(model.parameters())))
    ]
    optimizer = torch.optim.AdamW(groups)
    for _ in range(STEPS):
        inputs, targets = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


class Lookahead(torch.optim.Optimizer):
    """Slow weights that follow those of another optimizer every two steps."""

    def __init__(self, inner):
        self.inner, self.count = inner, 0
        super().__init__([one for group in inner.param_groups for one in group["params"]], {})
        self.slow = [one.detach().clone() for group in self.param_groups for one in group["params"]]

    def step(self, closure=None):
        self.inner.step(closure)
        self.count += 1
        if self.count % 2 == 0:
            fast = [one for group in self.param_groups for one in group["params"]]
            for slow, one in zip(self.slow, fast, strict=True):
                slow += 0.5 * (one.detach() - slow)
                one.data.copy_(slow)


def lookahead():
    model = net()
    optimizer = Lookahead(sgd(model))
    for _ in range(STEPS):
        for _ in range(K):
            inputs, targets = batch()
            (F.cross_entropy(model(inputs), targets) / K).backward()
        optimizer.step()
        optimizer.zero_grad()


def averaged_weights():
    """Stochastic weight averaging, with its own schedule and its own BatchNorm."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    averaged, optimizer = AveragedModel(model), sgd(model)
    schedule = SWALR(optimizer, 0.05)
    for step in range(STEPS):
        inputs, targets = batch(8)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if step > 1:
            averaged.update_parameters(model)
            schedule.step()
    update_bn([torch.randn(8, 6)], averaged)


def growing_batches():
    """A curriculum: more and larger micro-batches a step as training goes on."""
    model = net()
    optimizer = sgd(model)
    for step in range(STEPS):
        count = 1 + step // 2
        for _ in range(count):
            inputs, targets = batch(4 + 2 * count)
            (F.cross_entropy(model(inputs), targets) / count).backward()
        optimizer.step()
        optimizer.zero_grad()


def tasks_in_turn():
    """Two heads over one body, trained in turn by losses of their own."""
    body, heads = net(8), [nn.Linear(8, 3), nn.Linear(8, 1)]
    optimizer = sgd(body, *heads)
    for step in range(2 * STEPS):
        inputs, targets = batch()
        out = heads[step % 2](body(inputs))
        loss = F.cross_entropy(out, targets) if step % 2 == 0 else 0.5 * F.mse_loss(out, targets[:, None].float())
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()


def policy_gradient():
    """PPO: several epochs of minibatches over one rollout, normalised advantages, a value loss and an entropy bonus."""
    policy, value = net(3), net(1)
    optimizer = torch.optim.Adam([*policy.parameters(), *value.parameters()])
    for _ in range(2):
        states = torch.randn(16, 6)
        with torch.no_grad():
            before = torch.distributions.Categorical(logits=policy(states))
            actions, guesses = before.sample(), value(states)[:, 0]
            old = before.log_prob(actions)
        returns = torch.randn(16).cumsum(0)
        for _ in range(2):
            for chosen in torch.randperm(16).split(8):
                advantages = returns[chosen] - guesses[chosen]
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                now = torch.distributions.Categorical(logits=policy(states[chosen]))
                ratio = (now.log_prob(actions[chosen]) - old[chosen]).exp()
                gain = torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
                error = F.mse_loss(value(states[chosen])[:, 0], returns[chosen])
                loss = -gain + 0.5 * error - 0.01 * now.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                nn.utils.clip_grad_norm_(value.parameters(), 0.5)
                optimizer.step()


def momentum_contrast():
    """MoCo: keys of a moving average, in a queue that is filled in place."""
    query = net(5)
    key = copy.deepcopy(query).requires_grad_(False)
    optimizer, queue, place = sgd(query), F.normalize(torch.randn(5, 16), dim=0), 0
    for _ in range(STEPS):
        images = torch.randn(4, 6)
        with torch.no_grad():
            for mine, theirs in zip(key.parameters(), query.parameters(), strict=True):
                mine.mul_(0.9).add_(theirs, alpha=0.1)
            keys = F.normalize(key(images + 0.1 * torch.randn(4, 6)), dim=1)
        found = F.normalize(query(images), dim=1)
        scores = torch.cat([(found * keys).sum(1, keepdim=True), found @ queue.clone()], 1) / 0.2
        optimizer.zero_grad()
        F.cross_entropy(scores, torch.zeros(4, dtype=torch.long)).backward()
        optimizer.step()
        queue[:, place : place + 4] = keys.t()
        place = (place + 4) % 16


def distillation():
    """A teacher's softened answers beside the labels, accumulated."""
    student, teacher = net(), net().eval()
    optimizer, heat = sgd(student), 3.0
    for _ in range(STEPS):
        for _ in range(K):
            inputs, targets = batch()
            with torch.no_grad():
                soft = (teacher(inputs) / heat).softmax(-1)
            out = student(inputs)
            of_teacher = F.kl_div((out / heat).log_softmax(-1), soft, reduction="batchmean") * heat**2
            ((0.7 * of_teacher + 0.3 * F.cross_entropy(out, targets)) / K).backward()
        optimizer.step()
        optimizer.zero_grad()


class LowRank(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs):
        return self.base(inputs) + 2.0 * self.up(self.down(inputs))


def low_rank():
    """LoRA: frozen weights and small ones beside them, of which the optimizer holds those that train."""
    model = nn.Sequential(LowRank(nn.Linear(6, 8)), nn.Tanh(), LowRank(nn.Linear(8, 3)))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    for _ in range(STEPS):
        for _ in range(K):
            inputs, targets = batch()
            (F.cross_entropy(model(inputs), targets) / K).backward()
        optimizer.step()
        optimizer.zero_grad()


def quantization_aware():
    """Weights are rounded in the forward, and the gradient goes straight through."""
    model = net()
    optimizer = sgd(model)
    for _ in range(STEPS):
        inputs, targets = batch()
        for layer in (model[0], model[2]):
            scale = layer.weight.detach().abs().max() / 7
            rounded = (layer.weight / scale).round() * scale
            inputs = F.linear(inputs, layer.weight + (rounded - layer.weight).detach(), layer.bias)
        optimizer.zero_grad()
        F.cross_entropy(inputs, targets).backward()
        optimizer.step()


def mixture_of_experts():
    """An auxiliary loss that balances experts, divided with the loss that it is added to."""
    gate, experts, head = nn.Linear(6, 3), nn.ModuleList(nn.Linear(6, 8) for _ in range(3)), nn.Linear(8, 3)
    optimizer = sgd(gate, experts, head)
    for _ in range(STEPS):
        for _ in range(K):
            inputs, targets = batch(8)
            chances = gate(inputs).softmax(-1)
            best = chances.argmax(-1)
            hidden = torch.stack([experts[int(one)](row) for one, row in zip(best, inputs, strict=True)])
            loss = F.cross_entropy(head(hidden * chances.gather(1, best[:, None])), targets)
            balance = 3 * (F.one_hot(best, 3).float().mean(0) * chances.mean(0)).sum()
            loss = loss + 0.01 * balance
            (loss / K).backward()
        optimizer.step()
        optimizer.zero_grad()


def diffusion():
    """The error of each time step has a weight of its own; an average of the weights is kept in a dict."""
    model = net(6, 7)
    optimizer, kept = torch.optim.AdamW(model.parameters()), {}
    shares = torch.cos(torch.linspace(0, math.pi / 2, 12)[:-1]) ** 2
    for _ in range(STEPS):
        for _ in range(K):
            clean, noise, time = torch.randn(4, 6), torch.randn(4, 6), torch.randint(11, (4,))
            share = shares[time][:, None]
            mixed = share.sqrt() * clean + (1 - share).sqrt() * noise
            each = F.mse_loss(model(torch.cat([mixed, time[:, None] / 11], 1)), noise, reduction="none").mean(1)
            weight = torch.clamp(share[:, 0] / (1 - share[:, 0] + 1e-3), max=5.0) + 0.1
            ((each * weight).mean() / K).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, one in model.state_dict().items():
            kept[name] = 0.9 * kept.get(name, one) + 0.1 * one


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.encoder = nn.Embedding(V, 8, padding_idx=0), nn.GRU(8, 8, batch_first=True)
        self.decoder, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, V)

    def forward(self, source, target):
        _, state = self.encoder(self.words(source))
        return self.out(self.decoder(self.words(target), state)[0])


def ragged(rows=4):
    found = torch.randint(1, V, (rows, T))
    for row in range(rows):
        found[row, int(torch.randint(3, T + 1, ())) :] = 0
    return found


def translation():
    """Smoothed labels, padding left out, divided by the tokens of the window."""
    model, optimizer = Translator(), None
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) ** -0.5, (step + 1) * 0.1))
    for _ in range(STEPS):
        window = [(ragged(), ragged()) for _ in range(K)]
        count = sum(int((target[:, 1:] != 0).sum()) for _, target in window)
        for source, target in window:
            out = model(source, target[:, :-1])
            loss = F.cross_entropy(
                out.flatten(0, 1), target[:, 1:].flatten(), ignore_index=0, label_smoothing=0.1, reduction="sum"
            )
            (loss / count).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def token_weighted():
    """As Hugging Face's Trainer does now: the model divides by the items of the window; answers only are targets."""
    model = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V))

    def fixed(logits, labels, items):
        labels = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
        total = F.cross_entropy(logits.float().view(-1, V), labels.view(-1), ignore_index=-100, reduction="sum")
        return total / items

    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(STEPS):
        window = [ragged() for _ in range(K)]
        labels = [one.masked_fill(one == 0, -100) for one in window]
        for one in labels:
            one[:, : int(torch.randint(1, 3, ()))] = -100
        items = sum((one[:, 1:] != -100).sum() for one in labels)
        for tokens, one in zip(window, labels, strict=True):
            fixed(model(tokens), one, items).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def masked_language():
    """BERT: a share of the tokens is masked, replaced or kept; its labels count, divided by the window's."""
    model = nn.Sequential(nn.Embedding(V + 1, 8), nn.Linear(8, V + 1))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(STEPS):
        window = []
        for _ in range(K):
            inputs = ragged()
            labels = inputs.clone()
            chosen = (torch.rand(inputs.shape) < 0.3) & (inputs != 0)
            chosen[:, 0] = True
            labels[~chosen] = -100
            inputs[chosen & (torch.rand(inputs.shape) < 0.8)] = V
            window.append((inputs, labels))
        count = sum((labels != -100).sum() for _, labels in window)
        for inputs, labels in window:
            (F.cross_entropy(model(inputs).transpose(1, 2), labels, reduction="sum") / count).backward()
        optimizer.step()
        optimizer.zero_grad()


def penalised_each_step():
    """An L2 term of its own backward, once a step, beside accumulated micro-batches of different sizes."""
    model = net()
    optimizer = sgd(model)
    for _ in range(STEPS):
        sizes = [2, 5, 3, 6]
        for size in sizes:
            inputs, targets = batch(size)
            (F.cross_entropy(model(inputs), targets, reduction="sum") / sum(sizes)).backward()
        (1e-3 * sum(one.pow(2).sum() for one in model.parameters())).backward()
        optimizer.step()
        optimizer.zero_grad()


def anchored_by_tasks():
    """EWC: what was learned before is held by a quadratic term, divided as the loss is."""
    model = net()
    optimizer = sgd(model)
    before = [one.detach().clone() for one in model.parameters()]
    for _ in range(STEPS):
        for _ in range(K):
            inputs, targets = batch()
            anchor = sum(((one - old) ** 2).sum() for one, old in zip(model.parameters(), before, strict=True))
            loss = F.cross_entropy(model(inputs), targets) + 0.5 * anchor
            loss = loss / K
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def clipped_samples():
    """DP-SGD: the gradient of each sample is clipped, their mean gets noise."""
    model = net()
    optimizer = sgd(model)
    for _ in range(STEPS):
        inputs, targets = batch()
        total = [torch.zeros_like(one) for one in model.parameters()]
        for row, target in zip(inputs, targets, strict=True):
            model.zero_grad()
            F.cross_entropy(model(row[None]), target[None]).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            assert norm > 0
            for kept, one in zip(total, model.parameters(), strict=True):
                kept += one.grad
        for kept, one in zip(total, model.parameters(), strict=True):
            one.grad = (kept + 0.01 * torch.randn_like(kept)) / len(inputs)
        optimizer.step()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
