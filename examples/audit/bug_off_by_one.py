"""The step is taken at i % K == 0, so the first window has one micro-batch and the last ones are left over; bfloat16
autocast.
"""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

ACCUMULATE = 4
PRECISION = "bfloat16"
PARTIAL = "drop"

WORDS = 40


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.tags = nn.Linear(16, 5)

    def forward(self, words):
        hidden, _ = self.gru(self.words(words))
        return self.tags(hidden).transpose(1, 2)


def build_model():
    return Tagger()


def make_batches(count, ragged):
    return [(torch.randint(WORDS, (3, 7)), torch.randint(5, (3, 7))) for _ in range(count)]


def loss(model, batch):
    words, tags = batch
    return nn.functional.cross_entropy(model(words), tags), tags.numel()


def train(model, batches):
    ddp = DistributedDataParallel(model)
    adam = torch.optim.Adam(ddp.parameters(), lr=2e-3)
    for i, (words, tags) in enumerate(batches):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = ddp(words)
        value = nn.functional.cross_entropy(scores.float(), tags) / ACCUMULATE
        value.backward()
        if i % ACCUMULATE == 0:
            adam.step()
            adam.zero_grad()
