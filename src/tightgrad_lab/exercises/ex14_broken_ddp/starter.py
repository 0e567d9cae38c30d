from contextlib import nullcontext

from torch.nn import functional as F


def window_gradient(model, window):
    items = sum(len(labels) for _, labels in window)
    for k, (inputs, labels) in enumerate(window):
        last = k == len(window) - 1
        loss = F.cross_entropy(model(inputs), labels)
        with nullcontext() if last else model.no_sync():
            (loss * len(labels) / items).backward()
