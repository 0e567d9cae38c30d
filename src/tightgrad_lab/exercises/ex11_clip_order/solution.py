import torch


def step(weights, processes, scale, max_norm, rate):
    means = [torch.stack(parts).double().mean(0) / scale for parts in zip(*processes)]
    norm = torch.stack([(grad * grad).sum() for grad in means]).sum().sqrt()
    factor = (max_norm / norm).clamp(max=1.0)
    return {"weights": [w - rate * factor * g for w, g in zip(weights, means)], "norm": float(norm)}
