import torch


def train(weights, windows, scale, interval, max_norm, rate):
    scales, skipped = [], []
    for window in windows:
        scales.append(scale)
        total = sum(backward(scale) for backward in window)
        weights = ...
    return {"weights": weights, "scales": scales, "skipped": skipped}
