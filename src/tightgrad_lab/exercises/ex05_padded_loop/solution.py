import torch
from torch.nn import functional as F


def train(batches, vocabulary, micro_batches, rate):
    table = torch.zeros(vocabulary, vocabulary, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([table], lr=rate)
    for start in range(0, len(batches), micro_batches):
        window = batches[start : start + micro_batches]
        items = sum(int((labels != -100).sum()) for _, labels in window)
        optimizer.zero_grad()
        for tokens, labels in window:
            loss = F.cross_entropy(table[tokens], labels, ignore_index=-100)
            (loss * int((labels != -100).sum()) / items).backward()
        optimizer.step()
    return table.detach()
