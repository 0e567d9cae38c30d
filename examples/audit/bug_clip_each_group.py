"""The optimizer's two parameter groups are clipped one by one, each by its own norm; the loss is part of a wrapper."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.lr_scheduler import OneCycleLR

MAX_NORM = 1.0


class WithLoss(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y):
        return F.smooth_l1_loss(self.net(x), y)


def build_model():
    return nn.Sequential(nn.Linear(10, 24), nn.LayerNorm(24), nn.GELU(), nn.Linear(24, 3))


def make_batches(count, ragged):
    return [{"x": torch.randn(6, 10), "y": torch.randn(6, 3)} for _ in range(count)]


def loss(model, batch):
    return F.smooth_l1_loss(model(batch["x"]), batch["y"]), len(batch["x"])


def groups_of(net):
    decay = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]


def fit_one(engine, opt, sched, batch):
    opt.zero_grad(set_to_none=True)
    engine(batch["x"], batch["y"]).backward()
    for group in opt.param_groups:
        nn.utils.clip_grad_norm_(group["params"], MAX_NORM)
    opt.step()
    sched.step()


def train(net, data):
    engine = DDP(WithLoss(net))
    opt = torch.optim.NAdam(groups_of(net), lr=1e-3)
    sched = OneCycleLR(opt, max_lr=1e-3, total_steps=len(data) + 1)
    for batch in data:
        fit_one(engine, opt, sched, batch)
