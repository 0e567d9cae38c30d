import torch


def train(curvatures, weights, rate, momentum, k, steps):
    velocity = torch.zeros_like(weights)
    residual = torch.zeros_like(weights)
    sent = torch.zeros_like(weights)
    for _ in range(steps):
        gradient = curvatures * weights
        wanted = gradient + residual
        chosen = wanted.abs().topk(k).indices
        message = torch.zeros_like(weights)
        message[chosen] = wanted[chosen]
        residual = wanted - message
        velocity = momentum * velocity + message
        weights = weights - rate * velocity
        sent[chosen] += 1
    return {"weights": weights, "residual": residual, "sent": sent.tolist()}
