"""CLIP-style contrastive training: English sentences find their French translations among those of a batch of 256,
with the memory of 32. `pipe.run_cached` gives the gradient of the big batch, to the rounding.

Accumulated as they are, micro-batches of 32 would compare each sentence with 31 others only.

$ python examples/clip_pairs.py
loss 0.363 after 141 steps of 256 pairs on 1 rank(s)
0.62 of 1000 unseen sentences find their translation first

$ torchrun --nproc-per-node 2 examples/clip_pairs.py
loss 0.363 after 141 steps of 256 pairs on 2 rank(s)
0.62 of 1000 unseen sentences find their translation first
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad_lab.cases.translation.data import tatoeba

BATCH, MICRO_BATCH, EPOCHS, BUCKETS, LENGTH = 256, 32, 3, 4096, 48


def encoded(sentences):
    """Numbers of the trigrams of letters, 0 behind the end: shape (n, LENGTH)."""
    rows = torch.zeros(len(sentences), LENGTH, dtype=torch.long)
    for row, sentence in zip(rows, sentences, strict=True):
        letters = f"  {sentence.lower()}  ".encode()
        numbers = [a * 961 + b * 31 + c for a, b, c in zip(letters, letters[1:], letters[2:], strict=False)][:LENGTH]
        row[: len(numbers)] = torch.tensor(numbers) % (BUCKETS - 1) + 1
    return rows


class Towers(nn.Module):
    """One tower a language, and a learnt temperature."""

    def __init__(self):
        super().__init__()
        self.english, self.french = (nn.EmbeddingBag(BUCKETS, 128, padding_idx=0) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, english, french):
        return normalize(self.english(english), dim=1), normalize(self.french(french), dim=1), self.scale.exp()


def infonce(representations):
    """Loss of all pairs of the window, on all ranks."""
    english, french, scale = representations
    scores, pairs = scale * english @ french.T, torch.arange(len(english))
    return (cross_entropy(scores, pairs) + cross_entropy(scores.T, pairs)) / 2


rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.manual_seed(0)
towers = model = Towers()
if ranks > 1:
    dist.init_process_group("gloo")
    model = DistributedDataParallel(towers)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
train, test = ([encoded(language) for language in zip(*pairs, strict=True)] for pairs in tatoeba())

plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=BATCH // MICRO_BATCH // ranks), clip=tg.clip.GlobalNorm(1.0))
pipe = tg.attach(model, optimizer, plan, weight=lambda batch: len(batch[0]))
for epoch in range(EPOCHS):
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(epoch))[rank::ranks]
    loader = [(train[0][part], train[1][part]) for part in order.split(MICRO_BATCH)]
    for window in pipe.windows(loader):
        record = pipe.run_cached(window, lambda batch: model(*batch), infonce)

if rank == 0:
    with torch.no_grad():
        english, french, _ = towers(*test)
    found = (english @ french.T).argmax(dim=1) == torch.arange(len(english))
    print(f"loss {record.loss:.3f} after {pipe.state.step} steps of {BATCH} pairs on {ranks} rank(s)")
    print(f"{found.double().mean():.2f} of {len(found)} unseen sentences find their translation first")
if ranks > 1:
    dist.destroy_process_group()
