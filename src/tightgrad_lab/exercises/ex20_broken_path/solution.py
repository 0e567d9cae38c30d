import torch


def train(weights, steps, k, max_norm, rate):
    residuals = [torch.zeros_like(weights) for _ in steps[0]]
    norms, skipped = [], []
    for processes in steps:
        total = sum(items for window in processes for _, items in window)
        gradients = [sum(gradient * items / total for gradient, items in window) for window in processes]
        skipped.append(not all(bool(torch.isfinite(gradient).all()) for gradient in gradients))
        if skipped[-1]:
            continue
        delivered = torch.zeros_like(weights)
        for rank, gradient in enumerate(gradients):
            wanted = residuals[rank] + gradient
            chosen = wanted.abs().topk(k).indices
            delivered[chosen] += wanted[chosen]
            residuals[rank] = wanted.clone()
            residuals[rank][chosen] = 0
        norms.append(float(delivered.norm()))
        weights = weights - rate * min(1.0, max_norm / norms[-1]) * delivered
    return {"weights": weights, "norms": norms, "skipped": skipped}
