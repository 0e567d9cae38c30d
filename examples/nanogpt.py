"""nanoGPT in small, on Shakespeare's plays: a plain PyTorch loop in which three lines are TightGrad's, marked 1, 2, 3.

One hundred steps of 64 pieces of text; counting single bytes gives 4.8 bits. Compressed, a rank sends 20 times fewer
bytes. `two_nodes.py` runs the same file over a slow link, and `slurm.sh` on a cluster.

$ python examples/nanogpt.py
100 steps on 1 rank(s), plan plain: 3.744 bits per byte
0.152 s and 0 bytes a step, for a gradient of 547840 bytes

$ torchrun --nproc-per-node 2 examples/nanogpt.py
100 steps on 2 rank(s), plan plain: 3.757 bits per byte
0.158 s and 547888 bytes a step, for a gradient of 547840 bytes

$ torchrun --nproc-per-node 2 examples/nanogpt.py --plan compressed
100 steps on 2 rank(s), plan compressed: 3.808 bits per byte
0.196 s and 26702 bytes a step, for a gradient of 547840 bytes
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad_lab.common.byte_model import plays

CONTEXT, WIDTH, HEADS, LAYERS = 64, 64, 4, 2
accumulate, clip = tg.Accumulate(micro_batches=4), tg.clip.GlobalNorm(1.0)
low_rank = tg.Compress(tg.codecs.IntBlock(bits=8), tg.reducers.PowerSGD(8), tg.ErrorFeedback())
PLANS = {
    "plain": tg.Plan(accumulate=accumulate, clip=clip),  # DistributedDataParallel sums over ranks
    "compressed": tg.Plan(accumulate=accumulate, clip=clip, compress=low_rank),
}


class Block(nn.Module):
    """Attention and a feed-forward net, each after a LayerNorm and around a skip connection."""

    def __init__(self):
        super().__init__()
        self.before, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        wide = 4 * WIDTH
        self.feed = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, wide), nn.GELU(), nn.Linear(wide, WIDTH))

    def forward(self, x):
        heads = self.qkv(self.before(x)).unflatten(2, (3 * HEADS, -1)).transpose(1, 2).chunk(3, dim=1)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.feed(x)


class GPT(nn.Module):
    """Scores of the next byte."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256, bias=False)

    def forward(self, text):
        places = torch.arange(text.shape[1])
        return self.head(self.norm(self.blocks(self.tokens(text) + self.places(places))))


def loss_of(model, text):
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def pieces(text, count, seed):
    """Random pieces of the text, a batch of `count` after the other."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT - 1, (count, 1), generator=generator)
        yield text[starts + torch.arange(CONTEXT + 1)]


arguments = argparse.ArgumentParser()
arguments.add_argument("--plan", choices=PLANS, default="plain")
arguments.add_argument("--steps", type=int, default=100)
options = arguments.parse_args()

rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
model = GPT()
if ranks > 1:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
text, held_out = plays()[:-100_000], plays()[-100_000:]
loader = pieces(text, 64 // accumulate.micro_batches // ranks, seed=1 + rank)  # 64 pieces a step, on all ranks together

pipe = tg.attach(model, optimizer, PLANS[options.plan], weight=lambda text: text[:, 1:].numel())
sent, start = 0, time.perf_counter()
for window in pipe.windows(loader):  # 1: four batches make a step
    for batch in window:
        loss = loss_of(model, batch)
        pipe.backward(loss)  # 2: in place of (loss / 4).backward()
    record = pipe.step()  # 3: in place of clip_grad_norm_, optimizer.step() and zero_grad()
    sent += record.wire_bytes
    if record.step + 1 == options.steps:
        break
seconds = (time.perf_counter() - start) / options.steps

if rank == 0:
    with torch.no_grad():
        bits = loss_of(model, next(pieces(held_out, 200, seed=0))) / torch.log(torch.tensor(2.0))
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.steps} steps on {ranks} rank(s), plan {options.plan}: {bits:.3f} bits per byte")
    print(f"{seconds:.3f} s and {sent // options.steps} bytes a step, for a gradient of {4 * weights} bytes")
if ranks > 1:
    dist.destroy_process_group()
