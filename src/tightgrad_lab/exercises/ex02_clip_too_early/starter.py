import torch


def train(inputs, targets, rate, max_norm, steps):
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=rate)
    norms, factors = [], []
    for _ in range(steps):
        loss = (inputs @ weights - targets).square().mean()
        torch.nn.utils.clip_grad_norm_([weights], max_norm)
        loss.backward()
        norms.append(float(weights.grad.norm()))
        factors.append(min(1.0, max_norm / norms[-1]))
        optimizer.step()
    return {"weights": weights.detach(), "norms": norms, "factors": factors}
