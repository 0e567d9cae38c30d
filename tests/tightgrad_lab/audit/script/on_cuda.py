"""A script for two GPUs, as people write it: CUDA names, NCCL, autocast, a GradScaler, compiled, with a logger."""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
import wandb
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--accumulate", type=int, default=2)
parser.add_argument("--out", default="checkpoint.pt")
parser.add_argument("--crash", action="store_true")
args = parser.parse_args()


class Model(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.width = width
        self.net = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Dropout(0.2), nn.Linear(width, 5))

    def forward(self, inputs, targets):
        return F.cross_entropy(self.net(inputs), targets)


dist.init_process_group("nccl")
device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
torch.cuda.set_device(device)
torch.manual_seed(dist.get_rank())
data = TensorDataset(torch.randn(32, 8), torch.randint(5, (32,)))
loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=4, pin_memory=True)
model = Model().to(device)
print("width", model.width)
model = DistributedDataParallel(torch.compile(model), device_ids=[device.index])
optimizer = torch.optim.AdamW(model.parameters(), fused=False)
scaler = torch.cuda.amp.GradScaler()
wandb.init(project="x")
for step, (inputs, targets) in enumerate(loader):
    model.require_backward_grad_sync = (step + 1) % args.accumulate == 0
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(inputs.cuda(non_blocking=True), targets.to("cuda")) / args.accumulate
    scaler.scale(loss).backward()
    if args.crash:
        raise ValueError("no more")
    if (step + 1) % args.accumulate == 0:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        wandb.log({"loss": loss.item()})
torch.save(model.state_dict(), args.out + ".tmp")
os.replace(args.out + ".tmp", args.out)
