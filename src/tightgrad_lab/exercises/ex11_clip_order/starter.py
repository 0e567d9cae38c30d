import torch


def step(weights, processes, scale, max_norm, rate):
    clipped = []
    for grads in processes:
        norm = torch.stack([(grad * grad).sum() for grad in grads]).sum().sqrt()
        factor = (max_norm / norm).clamp(max=1.0)
        clipped.append([grad * factor for grad in grads])
    means = [torch.stack(parts).double().mean(0) / scale for parts in zip(*clipped)]
    return {"weights": [w - rate * g for w, g in zip(weights, means)], "norm": float(norm)}
