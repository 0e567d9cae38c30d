import torch


def train(weights, steps, k, max_norm, rate):
    residuals = [torch.zeros_like(weights) for _ in steps[0]]
    norms, skipped = [], []
    for processes in steps:
        delivered = torch.zeros_like(weights)
        bad = False
        for rank, window in enumerate(processes):
            gradient = sum(gradient / len(window) for gradient, items in window) / len(processes)
            gradient = gradient * min(1.0, max_norm / float(gradient.norm()))
            residuals[rank] = residuals[rank] + gradient
            if not torch.isfinite(gradient).all():
                bad = True
                continue
            chosen = residuals[rank].abs().topk(k).indices
            delivered[chosen] += residuals[rank][chosen]
            residuals[rank][chosen] = 0
        skipped.append(bad)
        norms.append(float(delivered.norm()))
        weights = weights - rate * delivered
    return {"weights": weights, "norms": norms, "skipped": skipped}
