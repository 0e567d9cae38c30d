"""One micro-batch has no label that counts: its mean is 0/0."""

import torch
import torch.nn.functional as F
from torch import nn

ACCUMULATE = 4
VOCABULARY = 17


def build_model():
    return nn.Sequential(nn.Embedding(VOCABULARY, 12), nn.Tanh(), nn.Linear(12, VOCABULARY))


def make_batches(count, ragged):
    batches = []
    for i in range(count):
        tokens, labels = torch.randint(VOCABULARY, (2, 6)), torch.randint(VOCABULARY, (2, 6))
        if ragged:
            labels[:, 1 + i % 4 :] = -100
        if i == 2:
            labels[:] = -100
        batches.append((tokens, labels))
    return batches


def masked_mean(model, tokens, labels):
    each = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="none")
    return each.sum() / (labels != -100).sum()


def loss(model, batch):
    tokens, labels = batch
    return masked_mean(model, tokens, labels), int((labels != -100).sum())


def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        count = sum(int((labels != -100).sum()) for _, labels in window)
        for tokens, labels in window:
            share = int((labels != -100).sum()) / count
            (masked_mean(model, tokens, labels) * share).backward()
        optimizer.step()
        optimizer.zero_grad()
