import torch
from torch.nn import functional as F


def train(batches, vocabulary, micro_batches, rate):
    table = torch.zeros(vocabulary, vocabulary, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([table], lr=rate)
    for number, (tokens, labels) in enumerate(batches, 1):
        loss = F.cross_entropy(table[tokens], labels, ignore_index=-100)
        (loss / micro_batches).backward()
        if number % micro_batches == 0:
            optimizer.step()
    return table.detach()
