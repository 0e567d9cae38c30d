"""Attention that drops out by a number in its own forward, as nanoGPT does, and noise drawn by hand."""

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4
MAX_NORM = 1.0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(17, 12)
        self.qkv = nn.Linear(12, 36)
        self.output = nn.Linear(12, 17)
        self.dropout = 0.2

    def forward(self, tokens):
        query, key, value = self.qkv(F.dropout(self.embedding(tokens), self.dropout, self.training)).chunk(3, -1)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        keep = torch.rand(len(tokens), 1, 1) > 0.1  # stochastic depth
        return self.output(value + keep * mixed + 0.01 * torch.randn_like(mixed))


def build_model():
    return Attention()


def make_batches(count, ragged):
    lengths = [3 + (7 * i) % 11 if ragged else 8 for i in range(count)]
    return [(torch.randint(17, (2, length)), torch.randint(17, (2, length))) for length in lengths]


def loss(model, batch):
    tokens, labels = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()), labels.numel()


def train(model, batches):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        count = sum(labels.numel() for _, labels in window)
        for tokens, labels in window:
            (F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="sum") / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
